//! Clients: one that sends and receives exact frames, and nostr-sdk's.

use std::{collections::VecDeque, time::Duration};

use futures_util::{SinkExt, StreamExt};
use negentropy::{Id, Negentropy, NegentropyStorageVector};
use nostr_sdk::{Client, Event, Keys};
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream,
    tungstenite::{Error, Message, client::IntoClientRequest},
};

use crate::events;

/// How long an answer that must come may take.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A websocket client without opinions.
pub struct RawClient {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// Text frames that were received while waiting for another.
    skipped: VecDeque<String>,
}

impl RawClient {
    pub async fn connect(url: &str) -> Self {
        Self::try_connect(url)
            .await
            .unwrap_or_else(|error| panic!("cannot connect to {url}: {error}"))
    }

    /// The error is the HTTP answer when the upgrade is refused.
    pub async fn try_connect(url: &str) -> Result<Self, Error> {
        let connected = tokio::time::timeout(PATIENCE, tokio_tungstenite::connect_async(url)).await;
        let (socket, _) = connected.unwrap_or_else(|_| panic!("no answer from {url}"))?;
        Ok(Self { socket, skipped: VecDeque::new() })
    }

    /// A web page of this origin (RFC 6454): browsers say where a page is from.
    pub async fn connect_from_page(url: &str, origin: &str) -> Self {
        let mut request = url.into_client_request().unwrap();
        request.headers_mut().insert("Origin", origin.parse().unwrap());
        let connected =
            tokio::time::timeout(PATIENCE, tokio_tungstenite::connect_async(request)).await;
        let (socket, _) = connected.unwrap_or_else(|_| panic!("no answer from {url}")).unwrap();
        Self { socket, skipped: VecDeque::new() }
    }

    /// A local program beside a proxy that connects from 127.0.0.1.
    pub async fn connect_beside_proxy(url: &str) -> Self {
        let request = url.into_client_request().unwrap();
        let address = request.uri().authority().unwrap().as_str().parse().unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 2], 0).into()).unwrap();
        let connected = tokio::time::timeout(PATIENCE, async {
            let stream = MaybeTlsStream::Plain(socket.connect(address).await?);
            tokio_tungstenite::client_async(request, stream).await
        });
        let (socket, _) =
            connected.await.unwrap_or_else(|_| panic!("no answer from {url}")).unwrap();
        Self { socket, skipped: VecDeque::new() }
    }

    /// With further headers, as a proxy sends them. `Host` takes the place of the URL's.
    pub async fn try_connect_with(
        url: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, Error> {
        let mut request = url.into_client_request().unwrap();
        for (name, value) in headers {
            let value = value.parse().unwrap();
            if *name == "Host" {
                request.headers_mut().insert(*name, value);
            } else {
                request.headers_mut().append(*name, value);
            }
        }
        let connected =
            tokio::time::timeout(PATIENCE, tokio_tungstenite::connect_async(request)).await;
        let (socket, _) = connected.unwrap_or_else(|_| panic!("no answer from {url}"))?;
        Ok(Self { socket, skipped: VecDeque::new() })
    }

    pub async fn send(&mut self, message: &Value) {
        self.send_text(&message.to_string()).await;
    }

    pub async fn send_text(&mut self, text: &str) {
        self.send_frame(Message::text(text)).await;
    }

    pub async fn send_frame(&mut self, frame: Message) {
        self.socket.send(frame).await.expect("the connection is open");
    }

    /// Sends what may be refused while it is being sent.
    pub async fn try_send_text(&mut self, text: &str) {
        let _ = self.socket.send(Message::text(text)).await;
    }

    /// The same for any frame.
    pub async fn try_send_frame(&mut self, frame: Message) {
        let _ = self.socket.send(frame).await;
    }

    /// Sends EVENT without waiting for the answer.
    pub async fn send_event(&mut self, event: &Event) {
        self.send_text(&format!(r#"["EVENT",{}]"#, events::json(event))).await;
    }

    /// Sends EVENT and returns the last two elements of its OK.
    pub async fn publish(&mut self, event: &Event) -> (bool, String) {
        self.send_event(event).await;
        self.ok(&event.id.to_hex()).await
    }

    /// The same of a relay that may end meanwhile, or say nothing: then nothing is returned, and the
    /// connection is of no use any more.
    pub async fn try_publish(&mut self, event: &Event) -> Option<(bool, String)> {
        let frame = Message::text(format!(r#"["EVENT",{}]"#, events::json(event)));
        self.socket.send(frame).await.ok()?;
        let id = event.id.to_hex();
        let answer = async {
            loop {
                let text = self.read_text().await?;
                let message: Value = serde_json::from_str(&text).ok()?;
                if message[0] == "OK" && message[1] == id {
                    return Some((message[2].as_bool()?, message[3].as_str()?.to_owned()));
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(2), answer).await.ok()?
    }

    /// Publishes what must be accepted.
    pub async fn accept(&mut self, event: &Event) {
        let (accepted, message) = self.publish(event).await;
        assert!(accepted, "kind {} was refused: {message}", event.kind);
    }

    /// Publishes what must be refused, with this prefix.
    pub async fn refuse(&mut self, event: &Event, prefix: &str) {
        let (accepted, message) = self.publish(event).await;
        assert!(!accepted, "kind {} was accepted", event.kind);
        let start = format!("{prefix}: ");
        assert!(message.starts_with(&start), "expected a message with {start:?}, got {message:?}");
    }

    /// Waits for the OK of this event.
    pub async fn ok(&mut self, id: &str) -> (bool, String) {
        let text = self.wait_for(|m| m[0] == "OK" && m[1] == id, &format!("OK of {id}")).await;
        let message: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(message.as_array().unwrap().len(), 4, "an OK has four elements: {text}");
        (message[2].as_bool().unwrap(), message[3].as_str().unwrap().to_owned())
    }

    /// Asks something that makes the relay send its challenge (NIP-42), and returns it.
    pub async fn challenge(&mut self) -> String {
        let question = json!({"kinds": [4], "limit": 1});
        let refused = self.refused_req("challenge", &[question]).await;
        assert!(refused.starts_with("auth-required: "), "{refused}");
        self.next_challenge().await
    }

    /// Waits for the challenge (NIP-42).
    pub async fn next_challenge(&mut self) -> String {
        let text = self.wait_for(|m| m[0] == "AUTH", "AUTH").await;
        serde_json::from_str::<Value>(&text).unwrap()[1].as_str().unwrap().to_owned()
    }

    /// Sends AUTH and returns the last two elements of its OK.
    pub async fn send_auth(&mut self, event: &Event) -> (bool, String) {
        self.send_text(&format!(r#"["AUTH",{}]"#, events::json(event))).await;
        self.ok(&event.id.to_hex()).await
    }

    /// Authenticates with a key as the relay at `url`, on a connection that was not challenged yet.
    pub async fn authenticate(&mut self, keys: &Keys, url: &str) {
        let challenge = self.challenge().await;
        self.authenticate_with(keys, url, &challenge).await;
    }

    /// The same with a challenge that is known.
    pub async fn authenticate_with(&mut self, keys: &Keys, url: &str, challenge: &str) {
        let (accepted, message) = self.send_auth(&events::auth(keys, url, challenge)).await;
        assert!(accepted, "{message}");
    }

    /// Sends a REQ that must be answered with CLOSED, and returns the reason.
    pub async fn refused_req(&mut self, subscription: &str, filters: &[Value]) -> String {
        self.ask("REQ", subscription, filters).await;
        self.closed_reason(subscription).await
    }

    /// Sends a COUNT that must be answered with CLOSED (NIP-45), and returns the reason.
    pub async fn refused_count(&mut self, subscription: &str, filters: &[Value]) -> String {
        self.ask("COUNT", subscription, filters).await;
        self.closed_reason(subscription).await
    }

    /// COUNT (NIP-45).
    pub async fn count(&mut self, filters: &[Value]) -> u64 {
        self.ask("COUNT", "count", filters).await;
        let text = self
            .wait_for(
                |m| matches!(m[0].as_str(), Some("COUNT" | "CLOSED")) && m[1] == "count",
                "COUNT",
            )
            .await;
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(answer[0], "COUNT", "{text}");
        answer[2]["count"].as_u64().unwrap_or_else(|| panic!("no count: {text}"))
    }

    async fn ask(&mut self, verb: &str, subscription: &str, filters: &[Value]) {
        let mut message = vec![json!(verb), json!(subscription)];
        message.extend_from_slice(filters);
        self.send(&Value::Array(message)).await;
    }

    async fn closed_reason(&mut self, subscription: &str) -> String {
        let answers =
            |m: &Value| !matches!(m[0].as_str(), Some("OK" | "AUTH")) && m[1] == subscription;
        let text = self.wait_for(answers, &format!("CLOSED {subscription}")).await;
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(answer[0], "CLOSED", "{text}");
        answer[2].as_str().unwrap().to_owned()
    }

    /// Reconciles with what the relay has for a filter (NIP-77), as a client that has `have`.
    /// The error is the reason of a NEG-ERR.
    pub async fn negentropy(
        &mut self,
        filter: &Value,
        have: &[Event],
    ) -> Result<Difference, String> {
        let mut storage = NegentropyStorageVector::with_capacity(have.len());
        for event in have {
            let id = Id::from_byte_array(event.id.to_bytes());
            storage.insert(event.created_at.as_secs(), id).unwrap();
        }
        storage.seal().unwrap();
        let mut client = Negentropy::owned(storage, 60_000).unwrap();
        let first = hex(&client.initiate().unwrap());
        self.send(&json!(["NEG-OPEN", "neg", filter, first])).await;
        let mut difference = Difference::default();
        let (mut only_here, mut only_there) = (Vec::new(), Vec::new());
        loop {
            let answers =
                |m: &Value| matches!(m[0].as_str(), Some("NEG-MSG" | "NEG-ERR")) && m[1] == "neg";
            let text = self.wait_for(answers, "NEG-MSG").await;
            let answer: Value = serde_json::from_str(&text).unwrap();
            let said = answer[2].as_str().unwrap();
            if answer[0] == "NEG-ERR" {
                return Err(said.to_owned());
            }
            let next =
                client.reconcile_with_ids(&unhex(said), &mut only_here, &mut only_there).unwrap();
            difference.rounds += 1;
            match next {
                Some(next) => self.send(&json!(["NEG-MSG", "neg", hex(&next)])).await,
                None => break,
            }
        }
        self.send(&json!(["NEG-CLOSE", "neg"])).await;
        difference.only_here = sorted_hex(&only_here);
        difference.only_there = sorted_hex(&only_there);
        Ok(difference)
    }

    /// Waits for the next text frame, of whatever kind.
    pub async fn next_text(&mut self) -> String {
        if let Some(text) = self.skipped.pop_front() {
            return text;
        }
        match tokio::time::timeout(PATIENCE, self.read_text()).await {
            Ok(Some(text)) => text,
            Ok(None) => panic!("the connection was closed"),
            Err(_) => panic!("nothing came within {PATIENCE:?}"),
        }
    }

    /// The same as JSON.
    pub async fn next(&mut self) -> Value {
        let text = self.next_text().await;
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("not JSON: {text}"))
    }

    /// Waits for a message that satisfies `wanted`; others are kept for later.
    pub async fn wait_for(&mut self, wanted: impl Fn(&Value) -> bool, what: &str) -> String {
        let matches = |text: &String| serde_json::from_str(text).is_ok_and(|m: Value| wanted(&m));
        if let Some(at) = self.skipped.iter().position(matches) {
            return self.skipped.remove(at).unwrap();
        }
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            match tokio::time::timeout_at(deadline, self.read_text()).await {
                Ok(Some(text)) if matches(&text) => return text,
                Ok(Some(text)) => self.skipped.push_back(text),
                Ok(None) => panic!("the connection was closed before: {what}"),
                Err(_) => {
                    panic!("did not come within {PATIENCE:?}: {what}; got {:?}", self.skipped)
                }
            }
        }
    }

    /// Forgets what was received while waiting for something else.
    pub fn forget(&mut self) {
        self.skipped.clear();
    }

    /// Opens a subscription and returns what is stored, in the order it came, up to EOSE.
    pub async fn req(&mut self, subscription: &str, filters: &[Value]) -> Vec<Value> {
        self.ask("REQ", subscription, filters).await;
        let mut stored = Vec::new();
        loop {
            let text = self
                .wait_for(
                    |m| m[0] != "OK" && m[0] != "AUTH" && m[1] == subscription,
                    &format!("EOSE {subscription}"),
                )
                .await;
            let mut message: Value = serde_json::from_str(&text).unwrap();
            match message[0].as_str() {
                Some("EVENT") => stored.push(message[2].take()),
                Some("EOSE") => return stored,
                _ => panic!("expected EVENT or EOSE: {text}"),
            }
        }
    }

    /// The ids of what is stored, in the order it came. The subscription is closed again.
    pub async fn stored_ids(&mut self, filters: &[Value]) -> Vec<String> {
        let stored = self.req("stored", filters).await;
        self.send(&json!(["CLOSE", "stored"])).await;
        stored.iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect()
    }

    /// Checks that all of these events are stored.
    pub async fn assert_stored(&mut self, ids: &[String]) {
        for ids in ids.chunks(200) {
            let stored = self.stored_ids(&[json!({"ids": ids, "limit": 200})]).await;
            let lost: Vec<_> = ids.iter().filter(|id| !stored.contains(id)).collect();
            assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        }
    }

    /// Waits for the next live event of a subscription.
    pub async fn live(&mut self, subscription: &str) -> Value {
        let text = self
            .wait_for(|m| m[0] == "EVENT" && m[1] == subscription, &format!("EVENT {subscription}"))
            .await;
        serde_json::from_str::<Value>(&text).unwrap()[2].take()
    }

    /// Checks that the relay has sent nothing else when it answers a question asked now.
    ///
    /// An answer to an empty REQ is not a barrier for live events of other commits, so this also
    /// leaves them a moment.
    pub async fn expect_silence(&mut self) {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let stored = self.req("silence", &[json!({"ids": ["0".repeat(64)], "limit": 1})]).await;
        self.send(&json!(["CLOSE", "silence"])).await;
        assert!(stored.is_empty());
        assert!(self.skipped.is_empty(), "unexpected: {:?}", self.skipped);
    }

    /// Waits until the relay closes the connection. Returns the close code, if it sent one.
    pub async fn closed(&mut self) -> Option<u16> {
        self.farewell().await.1.map(|(code, _)| code)
    }

    /// Waits until the relay closes the connection. Returns its notices until then, and the code and
    /// reason of its close frame, if it sent one.
    pub async fn farewell(&mut self) -> (Vec<String>, Option<(u16, String)>) {
        let mut notices = Vec::new();
        let closing = async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Close(frame))) => {
                        return frame.map(|f| (f.code.into(), f.reason.as_str().to_owned()));
                    }
                    Some(Ok(Message::Text(text))) => {
                        let message: Value = serde_json::from_str(&text).unwrap();
                        if message[0] == "NOTICE" {
                            notices.push(message[1].as_str().unwrap().to_owned());
                        }
                    }
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return None,
                }
            }
        };
        let closed = tokio::time::timeout(PATIENCE, closing).await;
        let closed = closed.expect("the relay closes the connection");
        (notices, closed)
    }

    async fn read_text(&mut self) -> Option<String> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) => return Some(text.as_str().to_owned()),
                Some(Ok(Message::Close(_))) | Some(Err(_)) | None => return None,
                Some(Ok(_)) => {}
            }
        }
    }
}

/// Publishes notes, many of them under way at a time, until the relay is gone. Returns the ids that
/// were acknowledged.
pub async fn publish_until_the_end(url: String) -> Vec<String> {
    let (socket, _) = tokio_tungstenite::connect_async(&url).await.unwrap();
    let (mut sink, mut stream) = socket.split();
    let writer = tokio::spawn(async move {
        let keys = Keys::generate();
        for n in 0.. {
            let event = events::json(&events::note(&keys, &format!("note {n}")));
            if sink.send(Message::text(format!(r#"["EVENT",{event}]"#))).await.is_err() {
                return;
            }
        }
    });
    let mut acknowledged = Vec::new();
    while let Some(Ok(frame)) = stream.next().await {
        let Message::Text(text) = frame else { continue };
        let message: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(message[0], "OK", "{text}");
        // While it drains, a relay may refuse what still comes.
        if message[2] == true {
            acknowledged.push(message[1].as_str().unwrap().to_owned());
        }
    }
    writer.abort();
    acknowledged
}

/// What a reconciliation found: ids in hexadecimal, sorted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    pub only_here: Vec<String>,
    pub only_there: Vec<String>,
    /// Messages of the relay.
    pub rounds: usize,
}

fn sorted_hex(ids: &[Id]) -> Vec<String> {
    let mut ids: Vec<String> = ids.iter().map(|id| hex(&**id)).collect();
    ids.sort();
    ids
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    let digits = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digits).collect()
}

/// A client of nostr-sdk, connected to one relay.
pub async fn sdk_client(url: &str) -> Client {
    let client = Client::default();
    client.add_relay(url).await.unwrap();
    let connected = client.try_connect(PATIENCE).await;
    assert!(connected.failed.is_empty(), "nostr-sdk cannot connect: {:?}", connected.failed);
    client
}
