//! From a URL to an open websocket.

use std::{
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, client_async_with_config,
    tungstenite::{
        Error,
        client::IntoClientRequest,
        handshake::client::Response,
        http::{HeaderMap, HeaderValue, header},
        protocol::WebSocketConfig,
    },
};
use url::{Host, Url};

use super::{
    LinkError, LinkOptions,
    shown::shown,
    wire::{Counted, Traffic},
};
use crate::{protocol::is_global, tasks};

/// How the gateway names itself to relays.
pub(super) const AGENT: &str = concat!("nostr-gateway/", env!("CARGO_PKG_VERSION"));
/// What is read at once. Every silent connection keeps a buffer of this size.
const READ: usize = 8 * 1024;
/// What may wait to be written before it is written.
const WRITE: usize = 16 * 1024;
/// A name with many addresses is tried at so many.
const MAX_ADDRESSES: usize = 6;
/// The least time that one of several addresses gets.
const LEAST: Duration = Duration::from_secs(2);
/// The longest pause that a relay may ask for.
const LONGEST_RETRY: Duration = Duration::from_secs(3_600);

pub(super) type Connection = MaybeTlsStream<TcpStream>;
pub(super) type Socket = WebSocketStream<Counted<Connection>>;

/// A TCP connection, in TLS for `wss://`.
pub(super) async fn connect(url: &Url, options: &LinkOptions) -> Result<Connection, LinkError> {
    let after = options.timeouts.connect;
    let deadline = Instant::now() + after;
    let slow = |what| LinkError::Slow { what, after };
    let host = url.host().ok_or_else(|| LinkError::Url("the URL has no host".to_owned()))?;
    let name = match url.scheme() {
        "ws" => None,
        "wss" => Some(server_name(&host)?),
        _ => return Err(LinkError::Url("not a ws:// or wss:// URL".to_owned())),
    };
    let port = url.port_or_known_default().unwrap_or(443);
    let found = timeout_at(deadline, addresses(host, port, options)).await;
    let addresses = found.map_err(|_| slow("address for its name"))??;
    let stream = tcp(&addresses, deadline).await?;
    // Small messages are to leave at once; without it they only leave later.
    let _ = stream.set_nodelay(true);
    let Some(name) = name else { return Ok(MaybeTlsStream::Plain(stream)) };
    match timeout_at(deadline, options.tls.connect(name, stream)).await {
        Ok(Ok(stream)) => Ok(MaybeTlsStream::Rustls(stream)),
        Ok(Err(error)) => Err(LinkError::Unreachable(format!("TLS: {error}"))),
        Err(_) => Err(slow("TLS")),
    }
}

fn server_name(host: &Host<&str>) -> Result<ServerName<'static>, LinkError> {
    match host {
        Host::Domain(name) => ServerName::try_from((*name).to_owned())
            .map_err(|_| LinkError::Url(format!("{name} is no name for TLS"))),
        Host::Ipv4(address) => Ok(ServerName::from(IpAddr::from(*address))),
        Host::Ipv6(address) => Ok(ServerName::from(IpAddr::from(*address))),
    }
}

async fn addresses(
    host: Host<&str>,
    port: u16,
    options: &LinkOptions,
) -> Result<Vec<SocketAddr>, LinkError> {
    let mut found = match host {
        Host::Ipv4(address) => vec![SocketAddr::from((address, port))],
        Host::Ipv6(address) => vec![SocketAddr::from((address, port))],
        Host::Domain(name) => look_up(name.to_owned(), port, options).await?,
    };
    if options.only_global {
        let some = found.first().map(SocketAddr::ip);
        found.retain(|address| is_global(address.ip()));
        if let (true, Some(private)) = (found.is_empty(), some) {
            return Err(LinkError::PrivateAddress(private.to_string()));
        }
    }
    found.truncate(MAX_ADDRESSES);
    Ok(found)
}

/// The system's look-up blocks a thread, and goes on when nobody waits for it any more: the permit is
/// held by the thread.
async fn look_up(
    name: String,
    port: u16,
    options: &LinkOptions,
) -> Result<Vec<SocketAddr>, LinkError> {
    let failed = |error: io::Error| LinkError::Unreachable(error.to_string());
    let permit = options.look_ups.clone().acquire_owned().await;
    let found = tasks::blocking(move || {
        let _permit = permit;
        (name.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>)
    });
    found.await.map_err(failed)?.map_err(failed)
}

async fn tcp(addresses: &[SocketAddr], deadline: Instant) -> Result<TcpStream, LinkError> {
    let mut why = "its name has no address".to_owned();
    for (tried, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let others = u32::try_from(addresses.len() - tried).unwrap_or(1);
        let patience = (left / others).max(LEAST).min(left);
        match timeout(patience, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => why = error.to_string(),
            Err(_) => why = format!("no connection within {} s", patience.as_secs()),
        }
    }
    Err(LinkError::Unreachable(why))
}

/// The websocket, from the name to the upgrade.
pub(super) async fn websocket(
    url: &Url,
    options: &LinkOptions,
    traffic: Arc<Traffic>,
) -> Result<Socket, LinkError> {
    let after = options.timeouts.connect;
    let connection = connect(url, options).await?;
    let counted = Counted::new(connection, traffic, options.max_message);
    let config = WebSocketConfig::default()
        .read_buffer_size(READ)
        .write_buffer_size(WRITE)
        .max_message_size(Some(options.max_message))
        .max_frame_size(Some(options.max_message));
    let mut request =
        url.as_str().into_client_request().map_err(|error| LinkError::Url(error.to_string()))?;
    request.headers_mut().insert(header::USER_AGENT, HeaderValue::from_static(AGENT));
    match timeout(after, client_async_with_config(request, counted, Some(config))).await {
        Ok(Ok((socket, _))) => Ok(socket),
        Ok(Err(Error::Http(answer))) => Err(http(&answer)),
        Ok(Err(error)) => Err(LinkError::Unreachable(format!("no websocket: {error}"))),
        Err(_) => Err(LinkError::Slow { what: "websocket", after }),
    }
}

fn http(answer: &Response) -> LinkError {
    let text =
        |name| answer.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    LinkError::Http {
        status: answer.status().as_u16(),
        retry_after: retry_after(answer.headers()),
        location: answer
            .status()
            .is_redirection()
            .then(|| text(header::LOCATION).map(shown))
            .flatten(),
    }
}

/// How long the relay asks to wait (RFC 9110 §10.2.3): seconds, or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let at = httpdate::parse_http_date(text).ok()?;
            at.duration_since(std::time::SystemTime::now()).unwrap_or_default()
        }
    };
    Some(wait.min(LONGEST_RETRY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_may_say_when_to_come_again() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(of(" 120"), Some(Duration::from_secs(120)));
        assert_eq!(of("99999999999"), Some(LONGEST_RETRY));
        assert_eq!(of("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert_eq!(of("Mon, 21 Oct 2244 07:28:00 GMT"), Some(LONGEST_RETRY));
        assert_eq!(of("-1").or(of("soon")), None);
    }
}
