//! HTTP/1.1 on a shard's listener: the WebSocket handshake (RFC 6455 §4.2), and the pages of others.
//!
//! hyper speaks HTTP and the pages are an axum [`Router`]. The handshake is answered here, because the shard must get the
//! bare socket and is not `Send`.

use std::{
    cell::RefCell,
    convert::Infallible,
    future::poll_fn,
    net::IpAddr,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use axum::{Router, body::Body, http::header};
use futures_util::future::LocalBoxFuture;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Version,
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tickmesh_protocol::client::{Credential, ErrorCode};
use tokio::{
    net::{TcpListener, TcpStream},
    time,
};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::{
    admission::{client_address, is_trusted},
    config::Config,
    connection::{Admitted, Slot},
    proxied,
    requests::code_of,
    shard::SharedShard,
};
use crate::{
    auth::{Identity, Refusal, find_credential},
    lifecycle,
    ops::lifecycle::Lifecycle,
};

/// Where clients connect.
const PATH: &str = "/ws";

/// The subprotocol of client protocol v1.
const SUBPROTOCOL: &str = "tickmesh.v1";

/// Room for one request's head: a token of 4 KiB in the path and another in a header fit.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// Longest life of an HTTP connection that does not upgrade. Browsers and Prometheus open a new one.
const HTTP_LIFE: Duration = Duration::from_secs(120);

/// What a page may still take after that.
const HTTP_GRACE: Duration = Duration::from_secs(5);

/// Pause after `accept` failed: with no file descriptor left it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The answer when all places are taken.
const FULL: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: 78\r\n\
                    retry-after: 5\r\nconnection: close\r\n\r\n\
                    {\"error\":{\"code\":\"overloaded\",\"message\":\"this edge is full; ask another one\"}}";

/// Accepts connections, for ever. `max` is this shard's share of the connections.
pub async fn accept(shard: SharedShard, listener: TcpListener, pages: Router, max: usize) {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let slot = {
            let shard = shard.borrow();
            lifecycle!(shard.lifecycle, Lifecycle::ConnectionOpen, shard = shard.index);
            let slot = Slot::take(&shard.slots, max);
            if slot.is_none() {
                lifecycle!(shard.lifecycle, Lifecycle::ConnectionRejected, reason = "full");
            }
            slot
        };
        let Some(slot) = slot else {
            // The socket is new: this fits, or the client is gone.
            let _ = stream.try_write(FULL.as_bytes());
            continue;
        };
        // Events are written as they come; waiting for more would only delay them.
        if stream.set_nodelay(true).is_ok() {
            tokio::task::spawn_local(serve(Rc::clone(&shard), stream, peer.ip(), pages.clone(), slot));
        }
    }
}

/// Serves HTTP until the connection ends or becomes a WebSocket.
async fn serve(shard: SharedShard, mut stream: TcpStream, peer: IpAddr, pages: Router, slot: Slot) {
    let (handshake_timeout, is_proxied) = {
        let Config { handshake_timeout, proxy_protocol, trusted_proxies, .. } = &*shard.borrow().config;
        (*handshake_timeout, *proxy_protocol && is_trusted(peer, trusted_proxies))
    };
    let peer = if is_proxied {
        match time::timeout(handshake_timeout, proxied::source(&mut stream, peer)).await {
            Ok(Ok(source)) => source,
            Ok(Err(error)) => {
                return tracing::debug!(%peer, %error, "a trusted proxy does not say whose connection it is");
            }
            Err(_) => return,
        }
    } else {
        peer
    };
    let admitted: Rc<RefCell<Option<Admitted>>> = Rc::default();
    let pages = TowerToHyperService::new(pages);
    let service =
        service_fn(|request: Request<Incoming>| -> LocalBoxFuture<'static, Result<_, Infallible>> {
            if request.uri().path() == PATH {
                let (shard, admitted) = (Rc::clone(&shard), Rc::clone(&admitted));
                return Box::pin(async move {
                    let (response, admits) = answer(&shard, peer, &request).await;
                    *admitted.borrow_mut() = admits;
                    Ok(response)
                });
            }
            let response = pages.call(request);
            Box::pin(async move { Ok(response.await.unwrap_or_else(|never| match never {})) })
        });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // It counts anew for each request, so it also ends connections that ask for nothing more.
        .header_read_timeout(handshake_timeout)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let served = {
        let mut served = pin!(poll_fn(|context| connection.poll_without_shutdown(context)));
        time::timeout(HTTP_LIFE, &mut served).await
    };
    let served = match served {
        Ok(served) => served,
        Err(_) => {
            Pin::new(&mut connection).graceful_shutdown();
            let rest = poll_fn(|context| connection.poll_without_shutdown(context));
            time::timeout(HTTP_GRACE, rest).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = served {
        tracing::trace!(%error, "http connection failed");
        return;
    }
    let parts = connection.into_parts();
    if let Some(admitted) = admitted.take() {
        let mut early = parts.read_buf.to_vec();
        let id = shard.borrow_mut().open(parts.io.into_inner(), slot, admitted, &mut early);
        let owner = Rc::clone(&shard);
        tokio::task::spawn_local(poll_fn(move |context| owner.borrow_mut().poll_connection(id, context)));
    }
}

/// Answers a request for the WebSocket endpoint.
async fn answer(
    shard: &SharedShard,
    peer: IpAddr,
    request: &Request<Incoming>,
) -> (Response<Body>, Option<Admitted>) {
    let refused = match check_handshake(request) {
        Ok(key) => match admit(shard, peer, request).await {
            Ok(admitted) => {
                return (switch(key, offers_subprotocol(request.headers())), Some(admitted));
            }
            Err(refused) => refused,
        },
        Err(refused) => refused,
    };
    lifecycle!(shard.borrow().lifecycle, Lifecycle::ConnectionRejected, reason = refused.message);
    (refused.into_response(), None)
}

/// Lets a client in by its credentials, or without any.
async fn admit(shard: &SharedShard, peer: IpAddr, request: &Request<Incoming>) -> Result<Admitted, Refused> {
    let (authenticator, admission, admits_anonymous, address) = {
        let shard = shard.borrow();
        if !is_welcome_origin(request.headers(), shard.config.origins.as_deref()) {
            return Err(Refused {
                status: StatusCode::FORBIDDEN,
                code: ErrorCode::Forbidden,
                message: "pages of this origin may not connect",
                header: None,
            });
        }
        (
            Arc::clone(&shard.authenticator),
            Arc::clone(&shard.admission),
            shard.config.permissions.admits_anonymous(),
            client_address(peer, request.headers(), &shard.config.trusted_proxies),
        )
    };
    let enter = |identity: Option<Arc<Identity>>, credential: Option<Arc<Credential>>| {
        let place = admission.enter(address, identity.as_ref().map(|identity| &identity.user));
        place.map(|place| Admitted { identity, credential, place }).map_err(|crowded| Refused {
            status: StatusCode::TOO_MANY_REQUESTS,
            code: ErrorCode::RateLimited,
            message: crowded.words(),
            header: Some((header::RETRY_AFTER, "5")),
        })
    };
    let checked = match find_credential(request.uri(), request.headers()) {
        Ok(None) if admits_anonymous => return enter(None, None),
        Ok(None) => {
            return Err(Refused::unauthorized("credentials are needed", ErrorCode::Unauthorized, None));
        }
        Ok(Some(credential)) => {
            let identity = authenticator.authenticate(&credential).await;
            identity.map(|identity| (identity, Arc::new(credential)))
        }
        Err(refusal) => Err(refusal),
    };
    let shard = shard.borrow();
    lifecycle!(shard.lifecycle, Lifecycle::AuthValidate, accepted = checked.is_ok());
    let (identity, credential) = checked.map_err(|refusal| {
        shard.metrics.auth_rejected(refusal.label());
        Refused::unauthorized(refusal.words(), code_of(refusal), Some(refusal))
    })?;
    enter(Some(identity), Some(credential))
}

/// Whether a page may connect (RFC 6455 §10.2). Clients that are no browsers say nothing of an origin, and are asked for
/// none: they could say anything.
fn is_welcome_origin(headers: &HeaderMap, origins: Option<&[String]>) -> bool {
    let (Some(origins), Some(origin)) = (origins, headers.get(header::ORIGIN)) else { return true };
    origins.iter().any(|welcome| origin.as_bytes().eq_ignore_ascii_case(welcome.as_bytes()))
}

fn switch(key: &[u8], subprotocol: bool) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, header::HeaderValue::from_static("websocket"));
    if let Ok(accept) = derive_accept_key(key).try_into() {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    if subprotocol {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, header::HeaderValue::from_static(SUBPROTOCOL));
    }
    response
}

/// Why there is no upgrade.
#[derive(Debug)]
struct Refused {
    status: StatusCode,
    code: ErrorCode,
    message: &'static str,
    header: Option<(header::HeaderName, &'static str)>,
}

impl Refused {
    fn bad(message: &'static str) -> Self {
        Self { status: StatusCode::BAD_REQUEST, code: ErrorCode::BadRequest, message, header: None }
    }

    /// RFC 6750 §3, and 503 where it is not the client's fault.
    fn unauthorized(message: &'static str, code: ErrorCode, refusal: Option<Refusal>) -> Self {
        match refusal {
            Some(Refusal::Unavailable) => {
                let header = Some((header::RETRY_AFTER, "5"));
                Self { status: StatusCode::SERVICE_UNAVAILABLE, code, message, header }
            }
            refusal => {
                let challenge = refusal.map_or(
                    "Bearer realm=\"tickmesh\"",
                    |_| "Bearer realm=\"tickmesh\", error=\"invalid_token\"",
                );
                let header = Some((header::WWW_AUTHENTICATE, challenge));
                Self { status: StatusCode::UNAUTHORIZED, code, message, header }
            }
        }
    }

    fn into_response(self) -> Response<Body> {
        let body = serde_json::json!({"error": {"code": self.code, "message": self.message}});
        let mut response = Response::new(Body::from(body.to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        if let Some((name, value)) = self.header {
            headers.insert(name, header::HeaderValue::from_static(value));
        }
        response
    }
}

/// The client's key, if the request is a good opening handshake (RFC 6455 §4.2.1).
fn check_handshake<B>(request: &Request<B>) -> Result<&[u8], Refused> {
    let headers = request.headers();
    if request.method() != Method::GET {
        return Err(Refused {
            status: StatusCode::METHOD_NOT_ALLOWED,
            header: Some((header::ALLOW, "GET")),
            ..Refused::bad("a WebSocket begins with GET")
        });
    }
    if request.version() != Version::HTTP_11 {
        return Err(Refused::bad("a WebSocket needs HTTP/1.1"));
    }
    if !has_token(headers, &header::UPGRADE, "websocket")
        || !has_token(headers, &header::CONNECTION, "upgrade")
    {
        return Err(Refused {
            status: StatusCode::UPGRADE_REQUIRED,
            header: Some((header::UPGRADE, "websocket")),
            ..Refused::bad("this is a WebSocket endpoint; ask for an upgrade")
        });
    }
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(Refused {
            status: StatusCode::UPGRADE_REQUIRED,
            header: Some((header::SEC_WEBSOCKET_VERSION, "13")),
            ..Refused::bad("only version 13 of the WebSocket protocol is spoken")
        });
    }
    match headers.get(header::SEC_WEBSOCKET_KEY).map(header::HeaderValue::as_bytes) {
        Some(key) if is_key(key) => Ok(key),
        _ => Err(Refused::bad("Sec-WebSocket-Key must be 16 bytes in base64")),
    }
}

/// Sixteen bytes in base64: 22 characters and two signs of padding.
fn is_key(key: &[u8]) -> bool {
    let digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    key.len() == 24 && key[..22].iter().all(digit) && key.ends_with(b"==")
}

/// Whether a list header has a token, whatever its case.
fn has_token(headers: &HeaderMap, name: &header::HeaderName, token: &str) -> bool {
    let tokens = |value: &str| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token));
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).any(tokens)
}

fn offers_subprotocol(headers: &HeaderMap) -> bool {
    has_token(headers, &header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(change: impl FnOnce(&mut Request<()>)) -> Request<()> {
        let mut request = Request::builder()
            .uri("/ws")
            .header("Connection", "keep-alive, Upgrade")
            .header("Upgrade", "WebSocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
            .body(())
            .unwrap();
        change(&mut request);
        request
    }

    fn status(change: impl FnOnce(&mut Request<()>)) -> Option<u16> {
        check_handshake(&request(change)).err().map(|refused| refused.into_response().status().as_u16())
    }

    #[test]
    fn handshakes_are_checked() {
        assert_eq!(status(|_| {}), None);
        assert_eq!(status(|request| *request.method_mut() = Method::POST), Some(405));
        assert_eq!(status(|request| *request.version_mut() = Version::HTTP_10), Some(400));
        for (name, expected) in [
            (header::CONNECTION, 426),
            (header::UPGRADE, 426),
            (header::SEC_WEBSOCKET_VERSION, 426),
            (header::SEC_WEBSOCKET_KEY, 400),
        ] {
            assert_eq!(
                status(|request| drop(request.headers_mut().remove(&name))),
                Some(expected),
                "without {name}"
            );
            let wrong = header::HeaderValue::from_static("12");
            assert_eq!(
                status(|request| drop(request.headers_mut().insert(&name, wrong))),
                Some(expected),
                "wrong {name}"
            );
        }
    }

    #[test]
    fn the_accept_key_is_that_of_the_rfc() {
        let response = switch(b"dGhlIHNhbXBsZSBub25jZQ==", true);
        assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(response.headers()["sec-websocket-protocol"], "tickmesh.v1");
    }

    #[test]
    fn the_answer_of_a_full_edge_is_well_formed() {
        let (head, body) = FULL.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{}", body.len());
        serde_json::from_str::<serde_json::Value>(body).unwrap();
    }
}
