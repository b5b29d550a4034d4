//! The relay's address and connections to it.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, client_async_with_config,
    tungstenite::{Error, Message, Utf8Bytes, protocol::WebSocketConfig},
};
use url::Url;

use super::{
    error::{BenchError, advice},
    scan::{self, Frame},
};

/// How long opening a connection may take.
const CONNECT: Duration = Duration::from_secs(10);

/// How long a relay that works hard may neither send nor read.
const PATIENCE: Duration = Duration::from_secs(60);

/// The most of a NOTICE or refusal that is shown.
const SHOWN: usize = 200;

/// Where the relay is.
pub struct Target {
    /// As the user gave it.
    pub url: Arc<str>,
    /// `host:port` for HTTP's Host.
    pub authority: String,
    pub path: String,
    addresses: Vec<SocketAddr>,
    /// For `wss://`.
    tls: Option<(TlsConnector, ServerName<'static>)>,
    quick_ack: bool,
}

/// A connection to the relay, with TLS or without.
pub type Stream = MaybeTlsStream<TcpStream>;

/// What a connection is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Much traffic: large buffers save calls.
    Traffic,
    /// One of thousands that do nothing.
    Idle,
}

/// An open websocket. What fails on it is an error that names the relay and the phase.
pub struct Socket {
    stream: WebSocketStream<Stream>,
    url: Arc<str>,
    phase: &'static str,
    quick_ack: bool,
    /// The last NOTICE: often it says why nothing else comes.
    notice: Option<String>,
}

impl Target {
    /// Reads the URL and looks its host up.
    pub async fn resolve(text: &str, quick_ack: bool) -> Result<Self, BenchError> {
        let wrong = |why: &str| BenchError::Url { url: text.to_owned(), why: why.to_owned() };
        let url = Url::parse(text).map_err(|error| wrong(&error.to_string()))?;
        let host = url.host_str().ok_or_else(|| wrong("it has no host"))?;
        let port = url.port_or_known_default().unwrap_or(80);
        let unreachable = |why: String| BenchError::Unreachable { url: text.to_owned(), why };
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let tls = match url.scheme() {
            "ws" => None,
            "wss" => {
                let name = ServerName::try_from(bare.to_owned());
                Some((tls(), name.map_err(|error| wrong(&error.to_string()))?))
            }
            _ => return Err(wrong("not a ws:// or wss:// URL")),
        };
        let found = timeout(CONNECT, tokio::net::lookup_host((bare, port))).await;
        let addresses: Vec<SocketAddr> = match found {
            Ok(Ok(found)) => found.collect(),
            Ok(Err(error)) => return Err(unreachable(error.to_string())),
            Err(_) => return Err(unreachable("its name is not found in time".to_owned())),
        };
        Ok(Self {
            url: text.into(),
            authority: format!("{host}:{port}"),
            path: url[url::Position::BeforePath..].to_owned(),
            addresses,
            tls,
            quick_ack,
        })
    }

    /// Whether it is on this machine.
    pub fn is_loopback(&self) -> bool {
        !self.addresses.is_empty() && self.addresses.iter().all(|a| a.ip().is_loopback())
    }

    /// Whether connections may come from any of 127.0.0.0/8.
    pub fn is_loopback_v4(&self) -> bool {
        self.addresses.first().is_some_and(|a| a.ip().is_loopback() && a.is_ipv4())
    }

    /// A connection for HTTP or a websocket, from the given address if one is given.
    pub async fn connect(&self, source: Option<IpAddr>) -> Result<Stream, BenchError> {
        let stream = self.tcp(source).await?;
        let Some((connector, name)) = &self.tls else { return Ok(MaybeTlsStream::Plain(stream)) };
        let why = match timeout(CONNECT, connector.connect(name.clone(), stream)).await {
            Ok(Ok(stream)) => return Ok(MaybeTlsStream::Rustls(stream)),
            Ok(Err(error)) => format!("TLS: {error}"),
            Err(_) => format!("no TLS within {} s", CONNECT.as_secs()),
        };
        Err(BenchError::Unreachable { url: self.url.to_string(), why })
    }

    async fn tcp(&self, source: Option<IpAddr>) -> Result<TcpStream, BenchError> {
        let mut why = "its name has no address".to_owned();
        for address in &self.addresses {
            match timeout(CONNECT, connect(*address, source)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => why = error.to_string(),
                Err(_) => why = format!("no connection within {} s", CONNECT.as_secs()),
            }
        }
        Err(BenchError::Unreachable { url: self.url.to_string(), why })
    }

    /// A websocket for this phase.
    pub async fn open(
        &self,
        phase: &'static str,
        purpose: Use,
        source: Option<IpAddr>,
    ) -> Result<Socket, BenchError> {
        let stream = self.connect(source).await?;
        let config = match purpose {
            // The library zeroes all of it before each read.
            Use::Traffic => WebSocketConfig::default().read_buffer_size(16 << 10),
            Use::Idle => WebSocketConfig::default().read_buffer_size(1 << 10),
        };
        let refused = |why: String| BenchError::Refused { url: self.url.to_string(), why };
        let upgrade = client_async_with_config(&*self.url, stream, Some(config));
        match timeout(CONNECT, upgrade).await {
            Ok(Ok((stream, _))) => Ok(Socket {
                stream,
                url: self.url.clone(),
                phase,
                quick_ack: self.quick_ack,
                notice: None,
            }),
            Ok(Err(Error::Http(answer))) => Err(refused(format!("HTTP {}", answer.status()))),
            Ok(Err(error)) => Err(refused(error.to_string())),
            Err(_) => Err(refused(format!("no answer within {} s", CONNECT.as_secs()))),
        }
    }
}

/// TLS with the roots that browsers trust.
fn tls() -> TlsConnector {
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has the ciphers of the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

/// Without delay for small packets: what is measured is the relay.
async fn connect(address: SocketAddr, source: Option<IpAddr>) -> std::io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(source) = source {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    socket.set_nodelay(true)?;
    socket.connect(address).await
}

#[cfg(target_os = "linux")]
fn acknowledge_at_once(stream: &Stream) {
    // A measurement without it is still one.
    let _ = stream.get_ref().set_quickack(true);
}

#[cfg(not(target_os = "linux"))]
fn acknowledge_at_once(_stream: &Stream) {}

impl Socket {
    /// Puts a message into the buffer; [`Self::flush`] or a full buffer sends it.
    pub async fn feed(&mut self, text: Utf8Bytes) -> Result<(), BenchError> {
        match timeout(PATIENCE, self.stream.feed(Message::Text(text))).await {
            Ok(fed) => fed.map_err(|error| self.lost(&error)),
            Err(_) => Err(self.silent()),
        }
    }

    pub async fn flush(&mut self) -> Result<(), BenchError> {
        match timeout(PATIENCE, self.stream.flush()).await {
            Ok(flushed) => flushed.map_err(|error| self.lost(&error)),
            Err(_) => Err(self.silent()),
        }
    }

    pub async fn send(&mut self, text: impl Into<Utf8Bytes>) -> Result<(), BenchError> {
        self.feed(text.into()).await?;
        self.flush().await
    }

    /// Waits for the next text message.
    pub async fn next(&mut self) -> Result<Utf8Bytes, BenchError> {
        loop {
            if self.quick_ack {
                // The system forgets it, so it is said again before each wait.
                if let Some(text) = self.ready()? {
                    return Ok(text);
                }
                acknowledge_at_once(self.stream.get_ref());
            }
            let Ok(message) = timeout(PATIENCE, self.stream.next()).await else {
                return Err(self.silent());
            };
            if let Some(text) = self.text(message)? {
                return Ok(text);
            }
        }
    }

    /// The next text message, if it is here already.
    pub fn ready(&mut self) -> Result<Option<Utf8Bytes>, BenchError> {
        while let Some(message) = self.stream.next().now_or_never() {
            if let Some(text) = self.text(message)? {
                return Ok(Some(text));
            }
        }
        Ok(None)
    }

    fn text(
        &mut self,
        message: Option<Result<Message, Error>>,
    ) -> Result<Option<Utf8Bytes>, BenchError> {
        match message {
            Some(Ok(Message::Text(text))) => {
                if let Frame::Notice(notice) = scan::frame(&text) {
                    self.notice = Some(shown(notice));
                }
                Ok(Some(text))
            }
            Some(Ok(Message::Close(frame))) => Err(self.closed(match frame {
                Some(frame) => format!("close code {} {:?}", frame.code, shown(&frame.reason)),
                None => "no close code".to_owned(),
            })),
            Some(Ok(_)) => Ok(None),
            Some(Err(error)) => Err(self.lost(&error)),
            None => Err(self.closed("the stream ended".to_owned())),
        }
    }

    /// Asks, and counts the events up to EOSE. The subscription stays open.
    pub async fn ask(&mut self, req: Utf8Bytes) -> Result<u64, BenchError> {
        self.feed(req).await?;
        self.flush().await?;
        let mut events = 0;
        loop {
            let text = self.next().await?;
            match scan::frame(&text) {
                Frame::Event => events += 1,
                Frame::Eose => return Ok(events),
                Frame::Closed(reason) => return Err(self.refused(reason)),
                _ => {}
            }
        }
    }

    /// The error for a refused query.
    pub fn refused(&self, reason: &str) -> BenchError {
        BenchError::QueryRefused {
            url: self.url.to_string(),
            phase: self.phase,
            reason: shown(reason),
            advice: advice(reason),
        }
    }

    /// The error for a relay that neither sends nor takes anything any more.
    fn silent(&self) -> BenchError {
        BenchError::Silent {
            url: self.url.to_string(),
            phase: self.phase,
            seconds: PATIENCE.as_secs(),
            notice: match &self.notice {
                Some(notice) => format!(" (its last notice: {notice})"),
                None => String::new(),
            },
        }
    }

    fn lost(&self, error: &Error) -> BenchError {
        let mut why = match error {
            Error::ConnectionClosed | Error::AlreadyClosed => "it is gone".to_owned(),
            other => other.to_string(),
        };
        if let Some(notice) = &self.notice {
            why = format!("{why}; its last notice: {notice}");
        }
        self.closed(why)
    }

    fn closed(&self, why: String) -> BenchError {
        BenchError::Closed { url: self.url.to_string(), phase: self.phase, why }
    }
}

/// A text of the relay's, cut and without control characters: it is printed to a terminal.
pub fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(SHOWN).collect()
}
