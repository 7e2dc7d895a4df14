use super::*;

const GOOD: &str = r#"
[node]
name = "eu-1"
region = "eu-west"
roles = ["ingest", "edge"]

[edge]
listen = "127.0.0.1:0"

[mesh]
listen = ["/ip4/127.0.0.1/tcp/0"]

[[source]]
name = "engine"
kind = "kafka"
brokers = "127.0.0.1:9092"
topics = ["market.trades"]

[[route]]
source = "engine"
topic = "market.*"
channel = "trades"
key = ".symbol | ascii_downcase"
data = "{price: .p}"
"#;

fn parse(text: &str, environment: &[(&str, &str)]) -> Result<Config, InvalidConfig> {
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::parse(text, Path::new("node.toml"), environment)
}

fn faults(text: &str) -> Vec<String> {
    let invalid = parse(text, &[]).unwrap_err();
    invalid.to_string().lines().map(str::to_owned).collect()
}

#[test]
fn a_good_file_is_read() {
    let config = parse(GOOD, &[]).unwrap();
    assert_eq!((config.name.as_str(), config.region.as_str()), ("eu-1", "eu-west"));
    assert!(config.private.contains("orders"));
    assert_eq!(config.ingest.unwrap().routes.len(), 1);
}

#[test]
fn every_fault_is_named_at_once() {
    let bad = GOOD
        .replace("name = \"eu-1\"", "name = \"Eu 1\"")
        .replace("listen = \"127.0.0.1:0\"", "listen = \"nowhere\"\ncolour = \"red\"")
        .replace("kind = \"kafka\"", "kind = \"rabbit\"")
        .replace("data = \"{price: .p}\"", "data = \"{price: \"\nretain = \"all\"");
    let faults = faults(&bad);
    for part in [
        "node.toml: node.name: \"Eu 1\"",
        "node.toml: edge.listen: ",
        "node.toml: edge.colour: no such key",
        "node.toml: source[0].kind: ",
        "node.toml: route[0].data: jq does not compile",
        "node.toml: route[0].retain: \"all\": known: none last book",
    ] {
        assert!(faults.iter().any(|fault| fault.starts_with(part)), "no fault {part:?} in {faults:#?}");
    }
}

#[test]
fn broken_toml_says_where() {
    let faults = faults("[node]\nname = ");
    assert!(faults[0].starts_with("node.toml: TOML parse error at line 2"), "{faults:#?}");
}

#[test]
fn the_environment_wins_over_the_file() {
    let config =
        parse(GOOD, &[("TICKMESH_NODE__REGION", "us-east"), ("TICKMESH_CACHE", "/x"), ("HOME", "/")]);
    assert_eq!(config.unwrap().region, "us-east");
    let config = parse(GOOD, &[("TICKMESH_ROUTE__0__CHANNEL", "deals")]).unwrap();
    assert_eq!(config.ingest.unwrap().routes[0].channel, "deals");
    let invalid = parse(GOOD, &[("TICKMESH_ROUTE__7__CHANNEL", "deals")]).unwrap_err();
    assert!(invalid.to_string().contains("TICKMESH_ROUTE__7__CHANNEL"), "{invalid}");
}

#[test]
fn a_section_without_its_role_is_a_fault() {
    let faults = faults(&GOOD.replace("[\"ingest\", \"edge\"]", "[\"edge\"]"));
    assert!(
        faults.iter().any(|fault| fault.contains("source: is read only with the role \"ingest\"")),
        "{faults:#?}"
    );
    assert_eq!(faults.len(), 2, "{faults:#?}");
}

#[test]
fn routes_need_their_source_and_sources_a_name_of_their_own() {
    let faults = faults(&GOOD.replace("source = \"engine\"", "source = \"motor\""));
    assert!(faults.iter().any(|fault| fault.contains("no source is named \"motor\"")), "{faults:#?}");
}

/// A second route, of this channel, that says this.
fn with_route(channel: &str, says: &str) -> String {
    let route = "[[route]]\nsource = \"engine\"\ntopic = \"books\"\nkey = \".s\"";
    format!("{GOOD}\n{route}\nchannel = {channel}\n{says}")
}

#[test]
fn policies_are_read_and_agree() {
    let says = "retain = \"book\"\non_slow = \"resync\"";
    let config = parse(&with_route("\"depth\"", says), &[]).unwrap();
    let (policies, none) = config.ingest.unwrap().policies(&config.private);
    assert!(none.is_empty(), "{none:?}");
    assert_eq!(policies.of("depth").to_string(), "retain = \"book\", on_slow = \"resync\"");
    assert_eq!(policies.of("trades"), policies.of("of nobody"));

    let faults = faults(&with_route("\"trades\"", "retain = \"last\""));
    let both = [
        "node.toml: route: the route of source \"engine\", topic \"books\" and the route of source \"engine\", topic \"market.*\" do not agree",
        "channel \"trades\": retain = \"last\", on_slow = \"disconnect\" here, retain = \"none\", on_slow = \"disconnect\" there",
    ];
    assert!(faults.len() == 1 && both.iter().all(|part| faults[0].contains(part)), "{faults:#?}");
}

#[test]
fn policies_that_promise_too_much_are_refused() {
    for (channel, says, reason) in [
        ("\"depth\"", "retain = \"book\"\non_slow = \"conflate\"", "it needs retain = \"last\""),
        ("\"depth\"", "on_slow = \"resync\"", "it needs retain = \"book\" or \"last\""),
        ("\"orders\"", "retain = \"last\"\non_slow = \"conflate\"", "the channel is private"),
        ("\"orders\"", "retain = \"last\"", "the channel is private"),
        ("'\"a\" + .b'", "retain = \"last\"", "need a channel that is named"),
        ("\"depth\"", "on_slow = \"wait\"", "route[1].on_slow: \"wait\": known: disconnect conflate resync"),
    ] {
        let faults = faults(&with_route(channel, says));
        assert!(faults.len() == 1 && faults[0].contains(reason), "{channel}, {says}: {faults:#?}");
    }
}

#[test]
fn operators_that_cannot_work_are_refused() {
    let depth = |says: &str| format!("depth = {{ asks = '.a', bids = '.b'{says} }}");
    for (channel, says, reason) in [
        ("\"depth\"", "depth = { asks = '.a' }".to_owned(), "depth.bids: is missing"),
        ("\"depth\"", depth(", levels = [0]"), "depth.levels: at most 8 numbers from 1 to 1000"),
        ("\"depth\"", depth(", levels = [5, 5]"), "depth.levels: a number stands there twice"),
        ("\"depth\"", depth(", previous = '.pu'"), "depth.last: is missing"),
        ("\"depth\"", depth(", last = '.u |'"), "depth.last: jq does not compile"),
        ("\"depth\"", depth(", price = '.p'"), "depth.price: no such key"),
        ("\"depth\"", format!("data = '.'\n{}", depth("")), "a route has data or depth, not both"),
        ("\"calm\"", "conflate = { every = 5 }".to_owned(), "conflate.every"),
        ("\"all\"", "from = 'B!'".to_owned(), "from: \"B!\" is no channel"),
        (
            "\"all\"",
            "from = 'nothing'".to_owned(),
            "takes from \"nothing\", which no route of that source makes",
        ),
        ("\"all\"", "from = 'all'".to_owned(), "takes from \"all\", which no route of that source makes"),
    ] {
        let faults = faults(&with_route(channel, &says));
        assert!(faults.len() == 1 && faults[0].contains(reason), "{channel}, {says}: {faults:#?}");
    }
    let unnamed = faults(&with_route("'.c'", &depth("")));
    assert!(unnamed.iter().any(|fault| fault.contains("needs a channel that is named")), "{unnamed:#?}");
    let combined = "from = \"trades\"\ncombine = {}";
    assert!(parse(&with_route("\"all\"", combined), &[]).is_ok());
    let several = with_route("\"all\"", combined).replace("\"books\"", "\"books*\"");
    let faults_of_it = faults(&several);
    assert!(faults_of_it.len() == 1 && faults_of_it[0].contains("name one topic"), "{faults_of_it:#?}");
    let private =
        with_route("\"all\"", "from = \"trades\"").replace("roles", "private = [\"trades\"]\nroles");
    let faults = faults(&private);
    assert!(
        faults.iter().any(|fault| fault.contains("takes from \"trades\", which is private")),
        "{faults:#?}"
    );
}

#[test]
fn books_are_retained_and_what_operators_make_is_the_last() {
    let policy =
        |says: &str| parse(&with_route("\"made\"", says), &[]).unwrap().ingest.unwrap().routes[1].policy;
    assert_eq!(policy("depth = { asks = '.a', bids = '.b' }").retain.to_string(), "book");
    assert_eq!(policy("conflate = {}").retain.to_string(), "last");
    assert_eq!(policy("from = \"trades\"\ncombine = {}").retain.to_string(), "last");
    assert_eq!(policy("from = \"trades\"").retain.to_string(), "none");
}

#[test]
fn the_embedded_market_has_policies_unless_a_channel_is_private() {
    let market = GOOD.split("[[source]]").next().unwrap().to_owned()
        + "[[source]]\nname = \"market\"\nkind = \"embedded\"";
    let of = |text: &str, channel: &str| {
        let config = parse(text, &[]).unwrap();
        let (policies, faults) = config.ingest.unwrap().policies(&config.private);
        assert!(faults.is_empty(), "{faults:?}");
        policies.of(channel).to_string()
    };
    assert_eq!(of(&market, "depth"), "retain = \"book\", on_slow = \"resync\"");
    assert_eq!(of(&market, "ticker"), "retain = \"last\", on_slow = \"conflate\"");
    for channel in ["trades", "orders"] {
        assert_eq!(of(&market, channel), "retain = \"none\", on_slow = \"disconnect\"");
    }
    let private = market.replace("roles", "private = [\"depth\"]\nroles");
    assert_eq!(of(&private, "depth"), "retain = \"none\", on_slow = \"disconnect\"");
}
