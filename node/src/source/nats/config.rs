//! The `[[source]]` tables with `kind = "nats"` and `kind = "nats-core"`.

use std::path::{Path, PathBuf};

use async_nats::ServerAddr;

use crate::{config::reader::Section, source::Start};

/// Most addresses and most subjects; each subject costs the server a look at every message.
const MAX_LISTED: usize = 64;
/// Longest name of a stream, in bytes: it becomes a file name of the server's.
const MAX_STREAM_BYTES: usize = 255;

/// What a NATS source reads, and from where.
#[derive(Clone, Debug)]
pub struct Config {
    pub access: Access,
    pub stream: String,
    /// Which of the stream's subjects; all, if empty.
    pub subjects: Vec<String>,
    pub start: Start,
    /// A header of messages that holds the engine's time in microseconds since 1970. Without it, or where it is missing, the time
    /// counts when the server stored the message.
    pub time_header: Option<String>,
}

/// What a source of core NATS listens to, and where.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    pub access: Access,
    /// One: of several that overlap a message would come twice.
    pub subject: String,
}

/// How to reach a server, and as whom. Secrets are in files alone, which are read at each connection.
#[derive(Clone, Debug)]
pub struct Access {
    pub urls: Vec<ServerAddr>,
    pub login: Option<Login>,
    /// Whose certificate the server must have, instead of the system's authorities; with it a connection without TLS is refused.
    pub ca_file: Option<PathBuf>,
}

/// Who the source is to the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Login {
    Password {
        user: String,
        file: PathBuf,
    },
    Token(PathBuf),
    /// The seed of an NKey.
    Nkey(PathBuf),
    /// What `nsc` makes: a JWT and its NKey.
    Credentials(PathBuf),
}

impl Config {
    /// Reads the keys of a NATS source; files are relative to `folder`. `None` if a fault makes it useless; every fault is noted.
    pub fn read(section: &mut Section, folder: &Path) -> Option<Self> {
        let access = Access::read(section, folder);
        let stream: Option<String> = section.required("stream");
        let stream = stream.filter(|stream| {
            // The server's own rule.
            let bad = |character: char| {
                character.is_whitespace()
                    || character.is_control()
                    || matches!(character, '.' | '*' | '>' | '/' | '\\')
            };
            let good = !stream.is_empty() && stream.len() <= MAX_STREAM_BYTES && !stream.contains(bad);
            if !good {
                section.fault("stream", format!("no stream can have the name {stream:?}"));
            }
            good
        });
        let subjects = read_subjects(section);
        let start = section.or("start", Start::default());
        let time_header: Option<String> = section.optional("time_header");
        let time_header = time_header.filter(|name| {
            let good = name.parse::<async_nats::HeaderName>().is_ok();
            if !good {
                section.fault("time_header", format!("no header can have the name {name:?}"));
            }
            good
        });
        Some(Self { access: access?, stream: stream?, subjects: subjects?, start, time_header })
    }
}

impl CoreConfig {
    /// Reads the keys of a source with `kind = "nats-core"`; files are relative to `folder`. `None` if a fault makes it useless; every
    /// fault is noted.
    pub fn read(section: &mut Section, folder: &Path) -> Option<Self> {
        let access = Access::read(section, folder);
        let subject: Option<String> = section.required("subject");
        let subject = subject.filter(|subject| check_subject(section, "subject", subject));
        Some(Self { access: access?, subject: subject? })
    }
}

impl Access {
    fn read(section: &mut Section, folder: &Path) -> Option<Self> {
        let urls = read_urls(section);
        let login = read_login(section, folder);
        let ca_file: Option<PathBuf> = section.optional("ca_file");
        Some(Self { urls: urls?, login: login?, ca_file: ca_file.map(|file| folder.join(file)) })
    }

    /// The servers in words.
    pub(super) fn servers(&self) -> String {
        let name = |url: &ServerAddr| format!("{}:{}", url.host(), url.port());
        self.urls.iter().map(name).collect::<Vec<_>>().join(",")
    }
}

fn read_urls(section: &mut Section) -> Option<Vec<ServerAddr>> {
    let texts = section.required_list("url")?;
    if texts.is_empty() || texts.len() > MAX_LISTED {
        section.fault("url", format!("write one address, or a list of up to {MAX_LISTED}"));
        return None;
    }
    let mut urls = Vec::with_capacity(texts.len());
    for text in &texts {
        match text.parse::<ServerAddr>() {
            // What was written may be a secret, so it is not shown.
            Ok(url) if url.has_user_pass() || url.username().is_some() => {
                section.fault(
                    "url",
                    "holds credentials; write them to a file and name it by password_file or token_file",
                );
            }
            Ok(url) if matches!(url.scheme(), "nats" | "tls") => urls.push(url),
            Ok(_) | Err(_) => {
                section.fault("url", "is no address of a NATS server; write nats://host:4222, or tls://")
            }
        }
    }
    (urls.len() == texts.len()).then_some(urls)
}

/// The outer `None` is a fault.
fn read_login(section: &mut Section, folder: &Path) -> Option<Option<Login>> {
    let user: Option<String> = section.optional("user");
    let mut file = |key| section.optional::<PathBuf>(key).map(|file| folder.join(file));
    let password = file("password_file");
    let (token, nkey, credentials) = (file("token_file"), file("nkey_file"), file("credentials_file"));
    let password = match (user, password) {
        (Some(user), Some(file)) => Some(Login::Password { user, file }),
        (None, None) => None,
        _ => {
            section.fault("user", "user and password_file go together");
            return None;
        }
    };
    let logins =
        [password, token.map(Login::Token), nkey.map(Login::Nkey), credentials.map(Login::Credentials)];
    let mut logins = logins.into_iter().flatten();
    let login = logins.next();
    if logins.next().is_some() {
        section.fault("user", "one of user, token_file, nkey_file and credentials_file at most");
        return None;
    }
    Some(login)
}

fn read_subjects(section: &mut Section) -> Option<Vec<String>> {
    let subjects: Vec<String> = section.or("subjects", Vec::new());
    if subjects.len() > MAX_LISTED {
        section.fault("subjects", format!("at most {MAX_LISTED}"));
        return None;
    }
    let good = subjects.iter().filter(|subject| check_subject(section, "subjects", subject)).count();
    (good == subjects.len()).then_some(subjects)
}

fn check_subject(section: &Section, key: &str, subject: &str) -> bool {
    let good = is_subject(subject);
    if !good {
        section
            .fault(key, format!("{subject:?} is no subject; write orders.*, or orders.> for all below it"));
    }
    good
}

fn is_subject(text: &str) -> bool {
    let tokens = text.split('.').count();
    let good = |(place, token): (usize, &str)| {
        let wildcards = token.contains(['*', '>']);
        !token.is_empty()
            && !token.contains(|character: char| character.is_whitespace() || character.is_control())
            && (!wildcards || token == "*" || (token == ">" && place + 1 == tokens))
    };
    text.split('.').enumerate().all(good)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::reader::read_text;

    fn read(text: &str) -> (Option<Config>, Vec<String>) {
        read_text(text, |section| Config::read(section, Path::new("/etc/tickmesh")))
    }

    #[test]
    fn a_good_table_is_taken_as_it_is() {
        let (config, faults) = read(
            "url = ['nats://a:1', 'tls://b']\nstream = 'MARKET'\nsubjects = ['market.*.trades', 'orders.>']\n\
             start = 'beginning'\ntime_header = 'Engine-Time'\nuser = 'tickmesh'\npassword_file = 'nats.password'\n\
             ca_file = '/ca.pem'",
        );
        assert_eq!(faults, Vec::<String>::new());
        let config = config.unwrap();
        assert_eq!(config.access.servers(), "a:1,b:4222");
        assert_eq!((config.start, config.subjects.len()), (Start::Beginning, 2));
        let file = "/etc/tickmesh/nats.password".into();
        assert_eq!(config.access.login, Some(Login::Password { user: "tickmesh".into(), file }));
        assert_eq!(config.access.ca_file, Some("/ca.pem".into()));
        let (config, faults) = read("url = 'nats://a'\nstream = 'M'\ntoken_file = 't'");
        assert_eq!((faults, config.unwrap().start), (Vec::new(), Start::End));
    }

    #[test]
    fn every_fault_is_told_at_once() {
        let (config, faults) = read(
            "url = ['nats://alice:secret@a:1', 'http://b']\nstream = 'a.b'\nsubjects = ['a..b', 'a.>.b', 'a*']\n\
             start = 'middle'\ntime_header = 'a b:'\nuser = 'x'\nbrokers = 'y'",
        );
        assert!(config.is_none());
        let all = faults.join("\n");
        for part in [
            "url: holds credentials",
            "url: is no address",
            "stream: no stream can have the name \"a.b\"",
            "\"a..b\"",
            "\"a.>.b\"",
            "\"a*\"",
            "start: ",
            "time_header: ",
            "user: user and password_file go together",
            "brokers: no such key",
        ] {
            assert!(all.contains(part), "no word about {part} in:\n{all}");
        }
        assert!(!all.contains("secret"), "{all}");
        let (config, faults) = read("url = 'nats://a'\nstream = 'M'\ntoken_file = 't'\nnkey_file = 'n'");
        assert!(config.is_none() && faults.join("").contains("at most"), "{faults:?}");
    }
    #[test]
    fn core_nats_has_one_subject_and_no_stream() {
        let read = |text| read_text(text, |section| CoreConfig::read(section, Path::new("")));
        let (config, faults) = read("url = 'nats://a'\nsubject = 'market.>'");
        assert_eq!((config.map(|config| config.subject), faults), (Some("market.>".to_owned()), Vec::new()));
        let (config, faults) = read("url = 'nats://a'\nsubject = 'a b'\nstream = 'M'\nstart = 'beginning'");
        assert!(config.is_none());
        for part in ["subject: \"a b\"", "stream: no such key", "start: no such key"] {
            assert!(faults.iter().any(|fault| fault.contains(part)), "no word about {part} in {faults:?}");
        }
    }
}
