//! What a client shows to be let in, as it comes in the head of its request (RFC 6750 §2, and what browsers can send).

use axum::http::{HeaderMap, Uri, header};

use tickmesh_protocol::client::Credential;

use super::Refusal;

/// What comes before a token among the subprotocols: the one place besides the address where a browser can put it.
const SUBPROTOCOL_PREFIX: &str = "bearer.";

/// The first that is found: `Authorization: Bearer T`, `X-API-Key: K`, `Sec-WebSocket-Protocol: tickmesh.v1, bearer.T`,
/// `?token=T`, `?api_key=K`.
///
/// # Errors
/// If there is one that is no credential.
pub fn find_credential(uri: &Uri, headers: &HeaderMap) -> Result<Option<Credential>, Refusal> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let value = value.to_str().map_err(|_| Refusal::Malformed)?;
        let (scheme, token) = value.split_once(' ').ok_or(Refusal::Malformed)?;
        // RFC 7235 §2.1: schemes have no case.
        return if scheme.eq_ignore_ascii_case("bearer") {
            some(Credential::token, token.trim())
        } else {
            Err(Refusal::NotAccepted)
        };
    }
    if let Some(value) = headers.get("x-api-key") {
        return some(Credential::api_key, value.to_str().map_err(|_| Refusal::Malformed)?.trim());
    }
    let protocols = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let mut protocols = protocols.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    if let Some(token) = protocols.find_map(|protocol| protocol.trim().strip_prefix(SUBPROTOCOL_PREFIX)) {
        return some(Credential::token, token);
    }
    // Neither tokens nor keys hold characters that an address escapes.
    let query = uri.query().unwrap_or_default();
    let value = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    if let Some(token) = value("token") {
        return some(Credential::token, token);
    }
    value("api_key").map_or(Ok(None), |key| some(Credential::api_key, key))
}

fn some(make: fn(&str) -> Credential, text: &str) -> Result<Option<Credential>, Refusal> {
    if text.is_empty() { Err(Refusal::Malformed) } else { Ok(Some(make(text))) }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn find(uri: &str, headers: &[(&'static str, &str)]) -> Result<Option<Credential>, Refusal> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        find_credential(&uri.parse().unwrap(), &map)
    }

    #[test]
    fn the_first_place_wins() {
        let (token, key) = (Credential::token, Credential::api_key);
        let all = [
            ("authorization", "bearer a"),
            ("x-api-key", "b"),
            ("sec-websocket-protocol", "tickmesh.v1, bearer.c"),
        ];
        let uri = "/ws?x=1&token=d&api_key=e";
        assert_eq!(find(uri, &all), Ok(Some(token("a"))));
        assert_eq!(find(uri, &all[1..]), Ok(Some(key("b"))));
        assert_eq!(find(uri, &all[2..]), Ok(Some(token("c"))));
        assert_eq!(find(uri, &[]), Ok(Some(token("d"))));
        assert_eq!(find("/ws?api_key=e", &[("sec-websocket-protocol", "tickmesh.v1")]), Ok(Some(key("e"))));
        assert_eq!(find("/ws?tokens=e", &[]), Ok(None));
        assert_eq!(find("/ws", &[]), Ok(None));
    }

    #[test]
    fn what_is_no_credential_is_not_nothing() {
        assert_eq!(find("/ws", &[("authorization", "Basic YTpi")]), Err(Refusal::NotAccepted));
        for headers in
            [[("authorization", "Bearer")], [("authorization", "Bearer \u{e4}")], [("x-api-key", "")]]
        {
            assert_eq!(find("/ws?token=d", &headers), Err(Refusal::Malformed), "{headers:?}");
        }
        assert_eq!(find("/ws?token=", &[]), Err(Refusal::Malformed));
    }

    #[test]
    fn secrets_are_not_printed() {
        assert_eq!(
            format!("{:?} {:?}", Credential::token("abc"), Credential::api_key("d")),
            "Token(***) ApiKey(***)"
        );
    }
}
