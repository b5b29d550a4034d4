//! Just enough HTTP to read what the gateway serves, headers included.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

/// An answer.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// GET without further headers. `address` is `IP:PORT`.
pub async fn get(address: &str, path: &str) -> Response {
    request(address, "GET", path, &[]).await
}

/// The same of a local program beside a proxy that connects from 127.0.0.1.
pub async fn get_beside_proxy(address: &str, path: &str) -> Response {
    let asked = async {
        let socket = TcpSocket::new_v4()?;
        socket.bind(([127, 0, 0, 2], 0).into())?;
        let stream = socket.connect(address.parse().expect("an address")).await?;
        exchange(stream, address, "GET", path, &[], "").await
    };
    tokio::time::timeout(Duration::from_secs(10), asked)
        .await
        .unwrap_or_else(|_| panic!("no answer to GET {path} from {address}"))
        .unwrap_or_else(|error| panic!("GET {path} from {address}: {error}"))
}

/// One request. HTTP/1.0, so the body ends with the connection.
pub async fn request(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> Response {
    with_body(address, method, path, headers, "").await
}

/// The same with a body, unless it is empty.
pub async fn with_body(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Response {
    let asked = async {
        let stream = TcpStream::connect(address).await?;
        exchange(stream, address, method, path, headers, body).await
    };
    tokio::time::timeout(Duration::from_secs(10), asked)
        .await
        .unwrap_or_else(|_| panic!("no answer to {method} {path} from {address}"))
        .unwrap_or_else(|error| panic!("{method} {path} from {address}: {error}"))
}

async fn exchange(
    mut stream: TcpStream,
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> std::io::Result<Response> {
    let mut text = format!("{method} {path} HTTP/1.0\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        text.push_str(&format!("Host: {address}\r\n"));
    }
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        text.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    text.push_str("\r\n");
    text.push_str(body);
    // A body that is refused is not read to its end.
    let _ = stream.write_all(text.as_bytes()).await;
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes).await
        && bytes.is_empty()
    {
        return Err(error);
    }
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    let status = status.ok_or(std::io::ErrorKind::InvalidData)?;
    Ok(Response { status, headers, body: body.to_owned() })
}
