//! The commands that need no network.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    fs,
    process::{Command, Output},
};

fn tickmesh(folder: &std::path::Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tickmesh")).args(arguments).current_dir(folder).output().unwrap()
}

#[test]
fn a_bad_configuration_names_every_fault_and_exits_with_2() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("node.toml"),
        "[node]\nname = \"a\"\nroles = [\"ingest\", \"king\"]\n[mesh]\nlisten = [\"here\"]\n\
         [[source]]\nname = \"s\"\nkind = \"tape\"\n[[route]]\nsource = \"s\"\nchannel = \"c\"\nkey = \".[\"\n",
    )
    .unwrap();
    for command in ["check", "run"] {
        let output = tickmesh(folder.path(), &[command, "--config", "node.toml"]);
        assert_eq!(output.status.code(), Some(2));
        let said = String::from_utf8(output.stderr).unwrap();
        for part in
            ["node.region: is missing", "node.roles:", "mesh.listen:", "source[0].kind:", "route[0].key:"]
        {
            assert!(said.contains(part), "{command} does not say {part:?}: {said}");
        }
        assert!(said.contains("node.toml"));
    }
    let output = tickmesh(folder.path(), &["check", "--config", "absent.toml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("absent.toml"));
}

#[test]
fn keys_are_made_once_and_shown_again() {
    let folder = tempfile::tempdir().unwrap();
    let made = tickmesh(folder.path(), &["keys", "--node", "a.key", "--network", "n.psk"]);
    assert!(made.status.success());
    let shown = tickmesh(folder.path(), &["keys", "--show", "a.key"]);
    assert_eq!(made.stdout, shown.stdout);
    assert!(String::from_utf8(shown.stdout).unwrap().starts_with("12D3KooW"));
    let key = fs::read(folder.path().join("a.key")).unwrap();
    assert!(!tickmesh(folder.path(), &["keys", "--node", "a.key"]).status.success());
    assert_eq!(fs::read(folder.path().join("a.key")).unwrap(), key);
    use std::os::unix::fs::PermissionsExt;
    for file in ["a.key", "n.psk"] {
        let mode = fs::metadata(folder.path().join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{file} can be read by others");
    }
}

#[test]
fn a_peer_without_the_networks_key_says_how_to_make_one() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("node.toml"),
        "[node]\nname = \"a\"\nregion = \"eu-west\"\nroles = [\"edge\"]\n[edge]\nlisten = \"127.0.0.1:0\"\n\
         [mesh]\nlisten = [\"/ip4/127.0.0.1/tcp/0\"]\n",
    )
    .unwrap();
    let output = tickmesh(folder.path(), &["run", "--config", "node.toml"]);
    assert!(!output.status.success());
    assert!(String::from_utf8(output.stderr).unwrap().contains("tickmesh keys --network"));
}

#[test]
fn an_api_key_is_made_with_its_entry_and_accepted_by_check() {
    let folder = tempfile::tempdir().unwrap();
    let made = tickmesh(folder.path(), &["keys", "--api-key", "bot-7", "--user", "Alice"]);
    assert!(made.status.success());
    let key = String::from_utf8(made.stdout).unwrap();
    assert!(key.starts_with("tk_") && key.trim().len() > 64, "{key}");
    let said = String::from_utf8(made.stderr).unwrap();
    assert!(!said.contains(key.trim()), "the key itself goes to standard output alone");
    let entry = &said[said.find("[[key]]").unwrap()..];
    let entry: toml::Table = entry.parse().unwrap();
    assert_eq!(entry["key"][0]["user"].as_str(), Some("Alice"));
    assert_eq!(entry["key"][0]["hash"].as_str(), Some(&*tickmesh::auth::hash_of(key.trim())));
    assert_eq!(tickmesh(folder.path(), &["keys", "--api-key", "bot-7"]).status.code(), Some(2));
}

#[test]
fn a_client_says_what_is_wrong_with_its_files() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("broken.json"), "{\"positions\":{\"trades.a\":-1}}").unwrap();
    for (option, file, words) in [
        ("--resume", "broken.json", "broken.json: no positions as --resume writes them"),
        ("--token-file", "absent.token", "cannot read the token in absent.token"),
    ] {
        let output = tickmesh(folder.path(), &["client", "--subscribe", "trades.a", option, file]);
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn a_token_says_what_it_was_told() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("secret"), "a secret of thirty-two bytes or so\n").unwrap();
    let arguments = [
        "token",
        "--sub",
        "Alice",
        "--roles",
        "trader,viewer",
        "--pairs",
        "btc_*",
        "--audience",
        "tickmesh",
        "--secret-file",
        "secret",
        "--ttl",
        "10m",
    ];
    let made = tickmesh(folder.path(), &arguments);
    assert!(made.status.success(), "{made:?}");
    let token = String::from_utf8(made.stdout).unwrap();
    let mut validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::HS256);
    validation.set_audience(&["tickmesh"]);
    let key = jsonwebtoken::DecodingKey::from_secret(b"a secret of thirty-two bytes or so");
    let claims = jsonwebtoken::decode::<serde_json::Value>(token.trim(), &key, &validation).unwrap().claims;
    assert_eq!(claims["sub"], "Alice");
    assert_eq!(claims["roles"], serde_json::json!(["trader", "viewer"]));
    assert_eq!(claims["pairs"], serde_json::json!(["btc_*"]));
    assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 600);
}
