//! The `[auth]` section of the configuration.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use reqwest::Url;
use tickmesh_protocol::client::Secret;

use super::{ClaimNames, Pattern, jwt};
use crate::config::reader::{Section, Span};

/// Clocks of the exchange and of an edge may differ by this, unless the configuration says otherwise.
const LEEWAY: Duration = Duration::from_secs(5);

/// Tokens that live longer than a day are rare; who has such ones says how long.
const REVOCATIONS_KEPT: Duration = Duration::from_secs(24 * 3600);

/// Shortest secret for HS256: as long as its hash (RFC 7518 §3.2).
const MIN_SECRET_BYTES: usize = 32;

/// How clients are let in. Without any of these nobody can sign in.
#[derive(Clone, Debug)]
pub struct Config {
    pub jwt: Option<JwtConfig>,
    pub oauth2: Option<IntrospectionConfig>,
    pub api_keys: Option<PathBuf>,
    pub claims: ClaimNames,
    /// What each role may have; empty: roles do not matter.
    pub roles: BTreeMap<String, Vec<Pattern>>,
    /// How long what was revoked is kept: as long as any token lives.
    pub revocations_kept: Duration,
    /// Where; only ingest peers keep them over a restart, edges hear of them again.
    pub revocations_file: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            jwt: None,
            oauth2: None,
            api_keys: None,
            claims: ClaimNames::default(),
            roles: BTreeMap::new(),
            revocations_kept: REVOCATIONS_KEPT,
            revocations_file: None,
        }
    }
}

/// How tokens are checked.
#[derive(Clone, Debug)]
pub struct JwtConfig {
    pub algorithm: Algorithm,
    pub keys: JwtKeys,
    pub issuer: Option<String>,
    pub audience: Option<String>,
    pub leeway: Duration,
}

/// How tokens are asked about.
#[derive(Clone, Debug)]
pub struct IntrospectionConfig {
    pub url: Url,
    pub client_id: String,
    pub client_secret: Secret,
    /// How old an answer may be.
    pub cache: Duration,
    /// How long the server may take.
    pub timeout: Duration,
}

/// Where the keys come from.
#[derive(Clone, Debug)]
pub enum JwtKeys {
    Key(Box<DecodingKey>),
    Url(Url),
}

impl Config {
    /// Reads the section; files are relative to `folder`. The caller ends it with [`Section::finish`].
    pub fn read(section: &mut Section, folder: &Path) -> Self {
        let jwt = section.has("jwt").then(|| {
            let mut jwt = section.section("jwt");
            let config = JwtConfig::read(&mut jwt, folder);
            jwt.finish();
            config
        });
        let oauth2 = section.has("oauth2").then(|| {
            let mut oauth2 = section.section("oauth2");
            let config = IntrospectionConfig::read(&mut oauth2, folder);
            oauth2.finish();
            config
        });
        let default = ClaimNames::default();
        let mut claims = section.section("claims");
        let names = ClaimNames {
            user: claims.or("user", default.user),
            roles: claims.or("roles", default.roles),
            pairs: claims.or("pairs", default.pairs),
        };
        claims.finish();
        let mut roles = BTreeMap::new();
        for mut role in section.sections("role") {
            let name: Option<String> = role.required("name");
            let streams = role.parsed_list("streams");
            if streams.is_none() {
                role.fault("streams", "is missing; a list such as [\"trades.*\"]");
            }
            if let (Some(name), Some(streams)) = (name, streams)
                && roles.insert(name.clone(), streams).is_some()
            {
                role.fault("name", format!("two roles are named {name:?}"));
            }
            role.finish();
        }
        let mut api_keys = section.section("api_keys");
        let file: Option<PathBuf> = api_keys.optional("file");
        api_keys.finish();
        Self {
            jwt: jwt.flatten(),
            oauth2: oauth2.flatten(),
            api_keys: file.map(|file| folder.join(file)),
            claims: names,
            roles,
            revocations_kept: section.or("revocations_kept", Span(REVOCATIONS_KEPT)).0,
            revocations_file: None,
        }
    }

    /// Whether anybody can sign in.
    pub fn admits(&self) -> bool {
        self.jwt.is_some() || self.oauth2.is_some() || self.api_keys.is_some()
    }
}

impl IntrospectionConfig {
    fn read(section: &mut Section, folder: &Path) -> Option<Self> {
        let url = section.parsed("introspection_url");
        let client_id = section.required("client_id");
        let secret: Option<String> = section.optional("client_secret");
        let file: Option<PathBuf> = section.optional("client_secret_file");
        let cache = section.or("cache", Span(Duration::from_secs(30))).0;
        let timeout = section.or("timeout", Span(Duration::from_secs(2))).0;
        for (key, span) in [("cache", cache), ("timeout", timeout)] {
            if span < Duration::from_millis(10) {
                section.fault(key, "must be at least 10ms");
                return None;
            }
        }
        if url.is_none() {
            section.fault("introspection_url", "is missing: the token introspection endpoint (RFC 7662)");
        }
        let secret = match (secret, file) {
            (Some(secret), None) => secret,
            (None, Some(file)) => {
                let file = folder.join(file);
                let read = fs::read_to_string(&file);
                read.map_err(|error| {
                    section.fault("client_secret_file", format!("cannot read {}: {error}", file.display()));
                })
                .ok()?
            }
            _ => {
                section.fault("client_secret", "needs one of client_secret, client_secret_file");
                return None;
            }
        };
        Some(Self {
            url: url?,
            client_id: client_id?,
            client_secret: Secret::new(secret.trim()),
            cache,
            timeout,
        })
    }
}

impl JwtConfig {
    /// Tokens signed with HS256 and this secret, of any issuer and for any audience.
    pub fn with_secret(secret: &[u8]) -> Self {
        Self {
            algorithm: Algorithm::HS256,
            keys: JwtKeys::Key(Box::new(DecodingKey::from_secret(secret))),
            issuer: None,
            audience: None,
            leeway: LEEWAY,
        }
    }

    fn read(section: &mut Section, folder: &Path) -> Option<Self> {
        let secret: Option<String> = section.optional("secret");
        let secret_file: Option<PathBuf> = section.optional("secret_file");
        let public_key_file: Option<PathBuf> = section.optional("public_key_file");
        let url: Option<Url> = section.parsed("jwks_url");
        let name: Option<String> = section.optional("algorithm");
        let issuer = section.optional("issuer");
        let audience = section.optional("audience");
        let leeway = section.or("leeway", Span(LEEWAY)).0;

        let given = [secret.is_some(), secret_file.is_some(), public_key_file.is_some(), url.is_some()];
        if given.iter().filter(|given| **given).count() != 1 {
            section.fault("secret", "needs one of secret, secret_file, public_key_file, jwks_url");
            return None;
        }
        let is_secret = secret.is_some() || secret_file.is_some();
        let algorithm = match name.as_deref() {
            None if is_secret => Algorithm::HS256,
            None => {
                section.fault(
                    "algorithm",
                    "is missing; RS256, ES256 or EdDSA, whichever the tokens are signed with",
                );
                return None;
            }
            Some(name) => jwt::algorithm(name).or_else(|| {
                section.fault("algorithm", format!("{name:?}: known are HS256, RS256, ES256, EdDSA"));
                None
            })?,
        };
        if (algorithm.family() == AlgorithmFamily::Hmac) != is_secret {
            section.fault("algorithm", "HS256 goes with a secret, and the others with a public key");
            return None;
        }
        let read = |key: &str, file: &Path| {
            let file = folder.join(file);
            let read = fs::read(&file);
            read.map_err(|error| section.fault(key, format!("cannot read {}: {error}", file.display()))).ok()
        };
        let keys = if let Some(url) = url {
            JwtKeys::Url(url)
        } else if let Some(file) = public_key_file {
            let pem = read("public_key_file", &file)?;
            let key = match algorithm.family() {
                AlgorithmFamily::Rsa => DecodingKey::from_rsa_pem(&pem),
                AlgorithmFamily::Ec => DecodingKey::from_ec_pem(&pem),
                _ => DecodingKey::from_ed_pem(&pem),
            };
            match key {
                Ok(key) => JwtKeys::Key(Box::new(key)),
                Err(_) => {
                    section.fault(
                        "public_key_file",
                        format!("{} is no public key for it in PEM", file.display()),
                    );
                    return None;
                }
            }
        } else {
            let (key, secret) = match (secret, secret_file) {
                (Some(secret), _) => ("secret", secret.into_bytes()),
                (None, file) => ("secret_file", read("secret_file", &file.unwrap_or_default())?),
            };
            let secret = secret.trim_ascii();
            if secret.len() < MIN_SECRET_BYTES {
                section.fault(key, format!("must have at least {MIN_SECRET_BYTES} bytes (RFC 7518 §3.2)"));
                return None;
            }
            JwtKeys::Key(Box::new(DecodingKey::from_secret(secret)))
        };
        Some(Self { algorithm, keys, issuer, audience, leeway })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::reader::read_text;

    const SECRET: &str = "a secret of thirty-two bytes or so";

    fn read(text: &str) -> (Config, Vec<String>) {
        read_text(text, |section| Config::read(section, Path::new("/nowhere")))
    }

    #[test]
    fn every_key_is_read() {
        let (config, faults) = read(&format!(
            r#"
            [jwt]
            secret = "{SECRET}"
            issuer = "https://auth.example.com"
            audience = "tickmesh"
            leeway = "1s"
            [oauth2]
            introspection_url = "https://auth.example.com/introspect"
            client_id = "tickmesh"
            client_secret = "s"
            cache = "10s"
            timeout = "1s"
            [api_keys]
            file = "keys.toml"
            [claims]
            user = "uid"
            roles = "realm_access.roles"
            [[role]]
            name = "trader"
            streams = ["trades.*", "depth.*"]
            "#
        ));
        assert_eq!(faults, Vec::<String>::new());
        let jwt = config.jwt.as_ref().unwrap();
        assert_eq!((jwt.algorithm, jwt.leeway), (Algorithm::HS256, Duration::from_secs(1)));
        let oauth2 = config.oauth2.as_ref().unwrap();
        assert_eq!((oauth2.cache, oauth2.timeout), (Duration::from_secs(10), Duration::from_secs(1)));
        assert_eq!(config.api_keys.as_deref(), Some(Path::new("/nowhere/keys.toml")));
        assert_eq!(
            (&*config.claims.user, &*config.claims.roles, &*config.claims.pairs),
            ("uid", "realm_access.roles", "pairs")
        );
        assert_eq!(config.roles["trader"].len(), 2);
        assert!(config.admits() && !format!("{config:?}").contains(SECRET), "{config:?}");
    }

    #[test]
    fn what_cannot_be_meant_is_a_fault() {
        for (text, key) in [
            ("[jwt]\n", "jwt.secret"),
            ("[jwt]\nsecret = \"short\"", "jwt.secret"),
            ("[jwt]\nsecret = \"x\"\nsecret_file = \"y\"", "jwt.secret"),
            ("[jwt]\nsecret_file = \"absent\"", "jwt.secret_file"),
            ("[jwt]\npublic_key_file = \"absent\"\nalgorithm = \"RS256\"", "jwt.public_key_file"),
            ("[jwt]\njwks_url = \"https://a.b/\"", "jwt.algorithm"),
            ("[jwt]\njwks_url = \"https://a.b/\"\nalgorithm = \"none\"", "jwt.algorithm"),
            // A public key is no secret.
            ("[jwt]\njwks_url = \"https://a.b/\"\nalgorithm = \"HS256\"", "jwt.algorithm"),
            ("[jwt]\njwks_url = \"here\"\nalgorithm = \"RS256\"", "jwt.jwks_url"),
            ("[oauth2]\nclient_id = \"a\"\nclient_secret = \"b\"", "oauth2.introspection_url"),
            ("[oauth2]\nintrospection_url = \"https://a.b/\"\nclient_id = \"a\"", "oauth2.client_secret"),
            ("[[role]]\nname = \"a\"", "role[0].streams"),
            ("[[role]]\nname = \"a\"\nstreams = [\"TRADES\"]", "role[0].streams"),
            ("colour = 1", "colour"),
        ] {
            let (_, faults) = read(text);
            assert!(faults.iter().any(|fault| fault.starts_with(&format!("{key}:"))), "{text}: {faults:?}");
        }
    }
}
