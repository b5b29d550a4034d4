//! Clients: one that sends and receives exact frames, and nostr-sdk's.

use std::{collections::VecDeque, time::Duration};

use futures_util::{SinkExt, StreamExt};
use nostr_sdk::{Client, Event, Keys};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream,
    tungstenite::{Error, Message},
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

    /// Sends EVENT without waiting for the answer.
    pub async fn send_event(&mut self, event: &Event) {
        self.send_text(&format!(r#"["EVENT",{}]"#, events::json(event))).await;
    }

    /// Sends EVENT and returns the last two elements of its OK.
    pub async fn publish(&mut self, event: &Event) -> (bool, String) {
        self.send_event(event).await;
        self.ok(&event.id.to_hex()).await
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

    /// Opens a subscription and returns what is stored, in the order it came, up to EOSE.
    pub async fn req(&mut self, subscription: &str, filters: &[Value]) -> Vec<Value> {
        let mut message = vec![json!("REQ"), json!(subscription)];
        message.extend_from_slice(filters);
        self.send(&Value::Array(message)).await;
        let mut stored = Vec::new();
        loop {
            let text = self
                .wait_for(|m| m[0] != "OK" && m[1] == subscription, &format!("EOSE {subscription}"))
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
        let closing = async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Close(frame))) => return frame.map(|f| f.code.into()),
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return None,
                }
            }
        };
        tokio::time::timeout(PATIENCE, closing).await.expect("the relay closes the connection")
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

/// A client of nostr-sdk, connected to one relay.
pub async fn sdk_client(url: &str) -> Client {
    let client = Client::default();
    client.add_relay(url).await.unwrap();
    let connected = client.try_connect(PATIENCE).await;
    assert!(connected.failed.is_empty(), "nostr-sdk cannot connect: {:?}", connected.failed);
    client
}
