use std::io::Write;

use super::*;
use crate::config::reader::read_text;

fn read(text: &str) -> (Option<Config>, Vec<String>) {
    read_text(text, |section| Config::read(section, Path::new("")))
}

#[test]
fn a_good_table_is_taken_as_it_is() {
    let (config, faults) = read(
        "url = 'rediss://reader:s3cret@redis-1:6380/2'\nkeys = ['market.trades', 'glob:orders.*', 'market.trades']\n\
         field = 'json'\nkey_field = 'user'\ntime_field = 'us'\nstart = 'beginning'\nepoch = '2'",
    );
    assert_eq!(faults, Vec::<String>::new());
    let config = config.unwrap();
    assert_eq!(
        (&*config.keys, &*config.patterns),
        (&["market.trades".to_owned()][..], &["orders.*".to_owned()][..])
    );
    assert_eq!(config.start, Start::Beginning);
    assert_eq!(config.servers(), "redis-1:6380");
    assert_eq!(config.wanted(), "market.trades, glob:orders.*");
    assert_eq!(config.urls[0].redis_settings().db(), 2);
    let shown = format!("{config:?}");
    assert!(!shown.contains("s3cret") && !shown.contains("reader"), "no credentials in logs: {shown}");

    let (config, faults) =
        read("cluster = true\nurl = ['redis://a:1', 'redis://b:2']\nkeys = ['t']\nfield = 'value'");
    assert_eq!(faults, Vec::<String>::new());
    assert_eq!(config.unwrap().servers(), "a:1,b:2");
}

#[test]
fn faults_are_told_in_words_and_without_credentials() {
    for (text, word) in [
        ("keys = ['t']", "url: is missing"),
        ("url = 'redis://a'", "keys: is missing"),
        ("url = 'http://u:s3cret@a'\nkeys = ['t']", "url: is no address"),
        ("url = 'redis://u:s3cret@:99999'\nkeys = ['t']", "url: "),
        ("url = 'redis://u:s3cret@a/many'\nkeys = ['t']", "url: "),
        ("url = 'rediss://u:s3cret@a#insecure'\nkeys = ['t']", "url: has nothing behind"),
        ("url = ['redis://a', 'redis://b']\nkeys = ['t']", "url: write one address"),
        ("url = 'redis://a/3'\ncluster = true\nkeys = ['t']", "url: a cluster has no other database"),
        ("url = 'redis://a'\nkeys = []", "keys: list 1 to 64"),
        ("url = 'redis://a'\nkeys = ['orders.*']", "keys: \"orders.*\": a pattern begins with glob:"),
        ("url = 'redis://a'\nkeys = ['glob:']", "keys: "),
        ("url = 'redis://a'\nkeys = ['t']\nstart = 'middle'", "start: "),
        (
            "url = 'redis://a'\nkeys = ['t']\npassword_file = 'none.secret'",
            "password_file: cannot read none.secret",
        ),
        ("url = 'redis://a'\nkeys = ['t']\nca_file = 'none.pem'", "ca_file: is read only with"),
        ("url = 'rediss://a'\nkeys = ['t']\nca_file = 'none.pem'", "ca_file: cannot read none.pem"),
        (
            "url = 'redis://a'\nkeys = ['t']\nbrokers = 'a:1'",
            "brokers: no such key; known here: cluster, url, keys",
        ),
    ] {
        let (_, faults) = read(text);
        let all = faults.join("\n");
        assert!(all.contains(word), "no word about {word:?} in {all:?}");
        assert!(!all.contains("s3cret"), "a password in {all:?}");
    }
}

#[test]
fn the_password_of_a_file_is_read_anew_each_time() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"first\n").unwrap();
    let table = format!("url = 'redis://reader@a'\nkeys = ['t']\npassword_file = {:?}", file.path());
    let (config, faults) = read(&table);
    assert_eq!(faults, Vec::<String>::new());
    let config = config.unwrap();
    let password = || Some(config.info(&config.urls[0]).ok()?.redis_settings().password()?.to_owned());
    assert_eq!(password().as_deref(), Some("first"));
    std::fs::write(file.path(), "second").unwrap();
    assert_eq!(password().as_deref(), Some("second"));
    std::fs::write(file.path(), "\n").unwrap();
    assert!(config.info(&config.urls[0]).unwrap_err().contains("is empty"));
    let (_, faults) = read(&table);
    assert!(faults[0].contains("password_file: ") && faults[0].contains("is empty"), "{faults:?}");
}
