//! Who a client is, as read from claims.

use std::{fmt, time::Duration};

use serde_json::{Map, Value};
use tickmesh_protocol::UserId;

use super::{Pattern, Refusal};

/// Roles or pairs of one token at most; more are a mistake, and each costs at every subscription.
const MAX_LIST: usize = 256;

/// A client whose credentials were accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub user: UserId,
    pub roles: Vec<String>,
    /// Keys of the public streams it may have; `None`: all that its roles allow.
    pub pairs: Option<Vec<Pattern>>,
    /// When the credentials were made, if they say so: time since 1970 UTC.
    pub issued_at: Option<Duration>,
    /// Time since 1970 UTC.
    pub expires_at: Option<Duration>,
    pub proof: Proof,
}

/// What the identity rests on; with it, it can be taken back.
#[derive(Clone, PartialEq, Eq)]
pub enum Proof {
    Token {
        /// The token's `jti` (RFC 7519 §4.1.7).
        id: Option<String>,
    },
    /// A token that the exchange's OAuth2 server has called active.
    Opaque {
        id: Option<String>,
        hash: [u8; 32],
    },
    ApiKey {
        id: String,
        hash: [u8; 32],
    },
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token { id } | Self::Opaque { id, .. } => write!(f, "token {id:?}"),
            Self::ApiKey { id, .. } => write!(f, "API key {id:?}"),
        }
    }
}

/// Where claims are looked for; a dot goes into an object, as in `realm_access.roles`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimNames {
    pub user: String,
    pub roles: String,
    pub pairs: String,
}

impl Default for ClaimNames {
    fn default() -> Self {
        Self { user: "sub".into(), roles: "roles".into(), pairs: "pairs".into() }
    }
}

impl ClaimNames {
    /// Reads an identity from claims whose times and signature have been checked.
    ///
    /// # Errors
    /// [`Refusal::Claims`]: without a user, or if a claim is there in a form that says nothing. A claim that cannot be
    /// understood must not widen what its token allows.
    pub fn read(&self, claims: &Map<String, Value>) -> Result<Identity, Refusal> {
        let user = match find(claims, &self.user) {
            Some(Value::String(user)) => UserId::new(user).map_err(|_| Refusal::Claims)?,
            Some(Value::Number(user)) => UserId::new(&user.to_string()).map_err(|_| Refusal::Claims)?,
            _ => return Err(Refusal::Claims),
        };
        let roles = find(claims, &self.roles).map(list).transpose()?.unwrap_or_default();
        let pairs = find(claims, &self.pairs).map(list).transpose()?;
        // A text that can be no key of a stream matches none.
        let pairs = pairs.map(|pairs| pairs.iter().filter_map(|pair| pair.parse().ok()).collect());
        let expires_at = match claims.get("exp") {
            None => None,
            Some(value) => Some(seconds(value).ok_or(Refusal::Claims)?),
        };
        let issued_at = claims.get("iat").and_then(seconds);
        let id = claims.get("jti").and_then(Value::as_str).map(str::to_owned);
        Ok(Identity { user, roles, pairs, issued_at, expires_at, proof: Proof::Token { id } })
    }
}

fn find<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    // A name with a dot, such as an address, may be a claim as it is.
    if let Some(value) = claims.get(name) {
        return Some(value);
    }
    let (outer, inner) = name.split_once('.')?;
    find(claims.get(outer)?.as_object()?, inner)
}

/// A list of texts, or one text with spaces between, as in OAuth2 scopes (RFC 6749 §3.3).
fn list(value: &Value) -> Result<Vec<String>, Refusal> {
    let texts: Vec<String> = match value {
        Value::String(text) => text.split(' ').filter(|text| !text.is_empty()).map(str::to_owned).collect(),
        Value::Array(items) => items
            .iter()
            .map(|item| item.as_str().map(str::to_owned))
            .collect::<Option<_>>()
            .ok_or(Refusal::Claims)?,
        _ => return Err(Refusal::Claims),
    };
    if texts.len() > MAX_LIST { Err(Refusal::Claims) } else { Ok(texts) }
}

/// A NumericDate (RFC 7519 §2): seconds since 1970, perhaps with a fraction.
fn seconds(value: &Value) -> Option<Duration> {
    value.as_u64().map(Duration::from_secs).or_else(|| Duration::try_from_secs_f64(value.as_f64()?).ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(names: &ClaimNames, claims: Value) -> Result<Identity, Refusal> {
        names.read(claims.as_object().unwrap())
    }

    #[test]
    fn claims_become_an_identity() {
        let claims = json!({
            "sub": "Alice", "roles": "trader viewer", "pairs": ["btc_*", "NO/KEY"], "exp": 1_800_000_000.5, "jti": "t1"
        });
        let identity = read(&ClaimNames::default(), claims).unwrap();
        assert_eq!(identity.user.as_str(), "Alice");
        assert_eq!(identity.roles, ["trader", "viewer"]);
        assert_eq!(identity.pairs, Some(vec!["btc_*".parse().unwrap()]));
        assert_eq!(identity.expires_at, Some(Duration::from_millis(1_800_000_000_500)));
        assert_eq!(identity.proof, Proof::Token { id: Some("t1".into()) });
    }

    #[test]
    fn claims_are_found_where_the_configuration_says() {
        let names = ClaimNames {
            user: "https://exchange.example/uid".into(),
            roles: "realm_access.roles".into(),
            ..ClaimNames::default()
        };
        let claims = json!({"https://exchange.example/uid": 42, "realm_access": {"roles": ["vip"]}});
        let identity = read(&names, claims).unwrap();
        assert_eq!(
            (identity.user.as_str(), identity.roles, identity.pairs),
            ("42", vec!["vip".to_owned()], None)
        );
    }

    #[test]
    fn a_claim_that_says_nothing_is_refused() {
        for claims in [
            json!({}),
            json!({"sub": ""}),
            json!({"sub": ["a"]}),
            json!({"sub": "a".repeat(1000)}),
            json!({"sub": "a", "roles": 1}),
            json!({"sub": "a", "pairs": [1]}),
            json!({"sub": "a", "pairs": {}}),
            json!({"sub": "a", "exp": "tomorrow"}),
            json!({"sub": "a", "exp": -1.5}),
            json!({"sub": "a", "roles": vec!["r"; 1000]}),
        ] {
            assert_eq!(read(&ClaimNames::default(), claims.clone()), Err(Refusal::Claims), "{claims}");
        }
    }
}
