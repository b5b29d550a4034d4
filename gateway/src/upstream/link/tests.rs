//! Links to relays in this process that do what a script says.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{SinkExt, StreamExt};
use nostr_sdk::Keys;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_tungstenite::{accept_async, tungstenite::Message};
use url::Url;

use super::*;
use crate::protocol::{EventId, signing::Author};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A relay that answers each message with what its script says.
pub(in crate::upstream) struct Scripted {
    pub url: Url,
    /// What it was sent.
    pub heard: mpsc::Receiver<Value>,
    /// Websockets that were opened, and that have ended.
    pub opened: Arc<AtomicUsize>,
    pub ended: Arc<AtomicUsize>,
    tasks: Tasks,
}

impl Scripted {
    /// `http` is the whole answer to requests that are no websocket.
    pub async fn start(
        http: impl Into<String>,
        script: impl Fn(&Value) -> Vec<Value> + Send + Sync + 'static,
    ) -> Self {
        let (http, script) = (Arc::new(http.into()), Arc::new(script));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}", listener.local_addr().unwrap()).parse().unwrap();
        let (tell, heard) = mpsc::channel(100_000);
        let (tasks, opened, ended) = (Tasks::new(), Arc::default(), Arc::default());
        let counters: [Arc<AtomicUsize>; 2] = [Arc::clone(&opened), Arc::clone(&ended)];
        let accepting = tasks.clone();
        tasks.spawn("scripted relay", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (http, script, tell) = (http.clone(), script.clone(), tell.clone());
                let [opened, ended] = counters.clone();
                accepting.spawn("scripted connection", async move {
                    if is_websocket(&stream).await {
                        opened.fetch_add(1, Ordering::Relaxed);
                        serve(stream, &*script, tell).await;
                        ended.fetch_add(1, Ordering::Relaxed);
                    } else {
                        answer(stream, &http).await;
                    }
                });
            }
        });
        Self { url, heard, opened, ended, tasks }
    }

    /// With this NIP-11 document.
    pub async fn with_document(
        document: &Value,
        script: impl Fn(&Value) -> Vec<Value> + Send + Sync + 'static,
    ) -> Self {
        Self::start(http_ok(&document.to_string()), script).await
    }

    /// The next message with this verb.
    pub async fn hears(&mut self, verb: &str) -> Value {
        let hearing = async {
            loop {
                let message = self.heard.recv().await.expect("it runs");
                if message[0] == verb {
                    return message;
                }
            }
        };
        timeout(PATIENCE, hearing).await.unwrap_or_else(|_| panic!("no {verb}"))
    }

    async fn link(&self) -> Link {
        self.link_with(options()).await
    }

    async fn link_with(&self, options: LinkOptions) -> Link {
        Link::open(&self.url, &options, &self.tasks).await.unwrap()
    }
}

pub(in crate::upstream) fn http_ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn no_document() -> String {
    "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned()
}

async fn is_websocket(stream: &TcpStream) -> bool {
    let mut head = [0; 2_048];
    loop {
        let count = stream.peek(&mut head).await.unwrap_or(0);
        let text = String::from_utf8_lossy(&head[..count]).to_ascii_lowercase();
        if count == 0 || text.contains("\r\n\r\n") {
            return text.contains("upgrade: websocket");
        }
        sleep(Duration::from_millis(5)).await;
    }
}

async fn answer(mut stream: TcpStream, http: &str) {
    let mut request = [0; 4_096];
    let _ = stream.read(&mut request).await;
    let _ = stream.write_all(http.as_bytes()).await;
    let _ = stream.shutdown().await;
}

async fn serve(
    stream: TcpStream,
    script: &(dyn Fn(&Value) -> Vec<Value> + Send + Sync),
    tell: mpsc::Sender<Value>,
) {
    let Ok(mut socket) = accept_async(stream).await else { return };
    for answer in script(&json!(["CONNECTED"])) {
        let _ = socket.send(Message::text(answer.to_string())).await;
    }
    while let Some(Ok(message)) = socket.next().await {
        let Message::Text(text) = message else { continue };
        let message: Value = serde_json::from_str(&text).unwrap();
        let _ = tell.send(message.clone()).await;
        for answer in script(&message) {
            // A number is a pause, in milliseconds; null ends the connection.
            if let Some(pause) = answer.as_u64() {
                sleep(Duration::from_millis(pause)).await;
                continue;
            }
            if answer.is_null() || socket.send(Message::text(answer.to_string())).await.is_err() {
                return;
            }
        }
    }
}

fn options() -> LinkOptions {
    let mut options = LinkOptions::new(64 * 1_024);
    options.timeouts.answer = Duration::from_secs(2);
    options
}

fn event(n: u64, kind: u16) -> Event {
    Author::new(1).sign(1_000 + n, kind, &[], &format!("event {n}"))
}

fn value(event: &Event) -> Value {
    serde_json::from_str(event.json()).unwrap()
}

fn notes() -> Filter {
    Filter::parse(r#"{"kinds":[1],"limit":900}"#).unwrap()
}

async fn next(request: &mut Request) -> Item {
    timeout(PATIENCE, request.next()).await.expect("in time").expect("the link lives")
}

async fn closed(link: &Link) -> LinkError {
    timeout(PATIENCE, link.closed()).await.expect("it ends")
}

#[tokio::test]
async fn a_request_gets_what_matches_and_is_closed_when_it_is_dropped() {
    let (good, other) = (event(1, 1), event(2, 7));
    let answers = (value(&good), value(&other));
    let limits = json!({"supported_nips": [1, 77], "limitation": {"max_limit": 300}});
    let mut relay = Scripted::with_document(&limits, move |message| match &message[0] {
        verb if verb == "REQ" => vec![
            json!(["EVENT", "somebody", answers.0]),
            json!(["EVENT", message[1], answers.1]),
            json!(["EVENT", message[1], answers.0]),
            json!(["EVENT", message[1], {"id": 1}]),
            json!(["EOSE", message[1], ["finish"]]),
        ],
        _ => Vec::new(),
    })
    .await;
    let link = relay.link().await;
    assert!(link.limits().negentropy);
    let mut request = link.request(&[notes()]).await.unwrap();
    assert_eq!(relay.hears("REQ").await[2], json!({"kinds": [1], "limit": 300}));
    assert!(matches!(next(&mut request).await, Item::Event(event) if event == good));
    assert!(matches!(next(&mut request).await, Item::Eose { complete: true }));
    let LinkFigures { mismatched, unasked, malformed, .. } = link.figures();
    assert_eq!((mismatched, unasked, malformed, request.mismatched()), (1, 1, 1, 1));
    drop(request);
    relay.hears("CLOSE").await;
    drop(link);
}

#[tokio::test]
async fn what_needs_authentication_is_sent_once_more_after_it() {
    let keys = Keys::generate();
    let known = Arc::new(AtomicUsize::new(0));
    let pubkey = keys.public_key().to_hex();
    let mut relay = Scripted::start(no_document(), move |message| {
        let refused = known.load(Ordering::Relaxed) == 0;
        match message[0].as_str().unwrap() {
            "CONNECTED" => vec![json!(["AUTH", "a challenge"])],
            "AUTH" => {
                let event = &message[1];
                assert_eq!((&event["kind"], &event["pubkey"]), (&json!(22242), &json!(pubkey)));
                assert!(
                    event["tags"]
                        .as_array()
                        .unwrap()
                        .contains(&json!(["challenge", "a challenge"]))
                );
                known.store(1, Ordering::Relaxed);
                vec![json!(["OK", event["id"], true, ""])]
            }
            "REQ" if refused => vec![json!(["CLOSED", message[1], "auth-required: who are you"])],
            "REQ" => vec![json!(["EOSE", message[1]])],
            "EVENT" if refused => {
                vec![json!(["OK", message[1]["id"], false, "auth-required: who are you"])]
            }
            "EVENT" => vec![json!(["OK", message[1]["id"], true, ""])],
            _ => Vec::new(),
        }
    })
    .await;
    let with_key = LinkOptions { auth: Some(Arc::new(keys)), ..options() };
    let link = relay.link_with(with_key).await;
    let mut request = link.request(&[notes()]).await.unwrap();
    let event = Arc::new(event(1, 1));
    let ack = link.publish(&event).await.unwrap();
    assert_eq!(ack, Ack { accepted: true, message: String::new() });
    assert!(matches!(next(&mut request).await, Item::Eose { .. }));
    relay.hears("AUTH").await;
}

#[tokio::test]
async fn without_a_key_or_a_challenge_it_stays_refused_with_the_reason() {
    let script = |message: &Value| match message[0].as_str().unwrap() {
        "REQ" => vec![json!(["CLOSED", message[1], "auth-required: who are you"])],
        "EVENT" => vec![json!(["OK", message[1]["id"], false, "auth-required: who are you"])],
        _ => Vec::new(),
    };
    let relay = Scripted::start(no_document(), script).await;
    for (auth, why) in [(None, "`auth`"), (Some(Arc::new(Keys::generate())), "no challenge")] {
        let link = relay.link_with(LinkOptions { auth, ..options() }).await;
        let mut request = link.request(&[notes()]).await.unwrap();
        match next(&mut request).await {
            Item::Closed(reason) => {
                assert!(reason.starts_with("auth-required: who are you ("), "{reason}");
                assert!(reason.contains(why), "{reason}");
            }
            other => panic!("{other:?}"),
        }
        // The sender gives up no sooner than the link does.
        match link.publish(&Arc::new(event(1, 1))).await {
            Ok(ack) => assert!(!ack.accepted && ack.message.contains(why), "{ack:?}"),
            Err(error) => assert!(matches!(error, LinkError::Slow { .. }), "{error}"),
        }
    }
}

#[tokio::test]
async fn a_notice_counts_as_the_answer_when_no_other_comes() {
    let script = |message: &Value| match message[0].as_str().unwrap() {
        "REQ" | "NEG-OPEN" => vec![json!(["NOTICE", "error: \u{1b}[31mwhat?"])],
        _ => Vec::new(),
    };
    let mut relay = Scripted::start(no_document(), script).await;
    let mut options = options();
    options.timeouts.answer = Duration::from_secs(8);
    let link = relay.link_with(options).await;
    let mut request = link.request(&[notes()]).await.unwrap();
    let mut session = link.negentropy(&notes()).await.unwrap();
    let error = session.exchange(b"a").await.unwrap_err();
    assert!(matches!(&error, NegError::Notice(text) if text == "error: [31mwhat?"), "{error}");
    let item = next(&mut request).await;
    assert!(matches!(&item, Item::Closed(text) if text == "notice: error: [31mwhat?"), "{item:?}");
    assert_eq!(link.last_notice().as_deref(), Some("error: [31mwhat?"));
    relay.hears("NEG-OPEN").await;
}

#[tokio::test]
async fn a_reconciliation_goes_to_and_fro_and_may_be_refused() {
    let script = |message: &Value| match message[0].as_str().unwrap() {
        "NEG-OPEN" => vec![
            json!(["NEG-MSG", message[1], "01"]),
            // Nobody waits for a second one.
            json!(["NEG-MSG", message[1], "02"]),
        ],
        "NEG-MSG" => vec![json!(["NEG-ERR", message[1], "closed: you took too long"])],
        _ => Vec::new(),
    };
    let mut relay = Scripted::start(no_document(), script).await;
    let link = relay.link().await;
    let mut session = link.negentropy(&notes()).await.unwrap();
    assert_eq!(session.exchange(&[0x61, 0xff]).await.unwrap(), [1]);
    let opened = relay.hears("NEG-OPEN").await;
    assert_eq!((&opened[2]["kinds"], &opened[3]), (&json!([1]), &json!("61ff")));
    let error = loop {
        match session.exchange(&[3]).await {
            Ok(message) => assert_eq!(message, [2], "the relay sent two at once"),
            Err(error) => break error,
        }
    };
    assert_eq!(error, NegError::Refused("closed: you took too long".to_owned()));
}

#[tokio::test]
async fn a_relay_that_says_nothing_is_not_waited_for_without_end() {
    let mut relay = Scripted::start(no_document(), |_| Vec::new()).await;
    let mut options = options();
    options.timeouts.answer = Duration::from_millis(300);
    let link = relay.link_with(options).await;
    let error = link.publish(&Arc::new(event(1, 1))).await.unwrap_err();
    assert!(matches!(error, LinkError::Slow { .. }), "{error}");
    let mut session = link.negentropy(&notes()).await.unwrap();
    assert!(matches!(session.exchange(b"a").await, Err(NegError::Silent(_))));
    assert!(!link.is_closed(), "its pings are answered");
    drop(session);
    relay.hears("NEG-CLOSE").await;
}

#[tokio::test]
async fn a_connection_without_a_sign_of_life_is_ended() {
    // It upgrades, and then reads nothing any more.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: Url = format!("ws://{}", listener.local_addr().unwrap()).parse().unwrap();
    let tasks = Tasks::new();
    tasks.spawn("a dead relay", async move {
        let (stream, _) = listener.accept().await.unwrap();
        let _held = accept_async(stream).await.unwrap();
        std::future::pending::<()>().await;
    });
    let mut options = options();
    options.timeouts = Timeouts {
        document: Duration::from_millis(100),
        answer: Duration::from_millis(300),
        silence: Duration::from_millis(300),
        ..options.timeouts
    };
    let link = Link::open(&url, &options, &tasks).await.unwrap();
    assert!(matches!(link.limits().document, Document::Unusable(_)));
    let why = closed(&link).await;
    assert!(matches!(why, LinkError::Slow { what: "sign of life", .. }), "{why}");
}

#[tokio::test]
async fn floods_of_what_nobody_asked_for_end_the_connection() {
    let junk = value(&event(1, 7));
    for kind in ["unasked", "mismatched", "notices", "garbage"] {
        let junk = junk.clone();
        let relay = Scripted::start(no_document(), move |message| {
            let junk = match kind {
                "unasked" => json!(["EVENT", "x", junk]),
                "mismatched" => json!(["EVENT", message[1], junk]),
                "notices" => json!(["NOTICE", "hello"]),
                _ => json!({"what": "is this"}),
            };
            if message[0] == "REQ" { vec![junk; 2_000] } else { Vec::new() }
        })
        .await;
        let link = relay.link().await;
        let _request = link.request(&[notes()]).await.unwrap();
        let why = closed(&link).await;
        assert!(matches!(why, LinkError::Misbehaved(_)), "{kind}: {why}");
    }
}

#[tokio::test]
async fn an_oversized_message_ends_the_connection() {
    let relay = Scripted::start(no_document(), |message| {
        let long = json!(["NOTICE", "x".repeat(3 << 20)]);
        if message[0] == "REQ" { vec![long] } else { Vec::new() }
    })
    .await;
    let link = relay.link().await;
    let _request = link.request(&[notes()]).await.unwrap();
    let why = closed(&link).await;
    assert!(matches!(why, LinkError::Misbehaved(_)), "{why}");
}

#[tokio::test]
async fn a_slow_reader_slows_the_relay_down_and_loses_nothing() {
    const COUNT: u64 = 3_000;
    let events: Vec<Value> = (0..COUNT)
        .map(|n| value(&Author::new(1).sign(1_000 + n, 1, &[], &"x".repeat(2_000))))
        .collect();
    let relay = Scripted::start(no_document(), move |message| match &message[0] {
        verb if verb == "REQ" => events
            .iter()
            .map(|event| json!(["EVENT", message[1], event]))
            .chain([json!(["EOSE", message[1]])])
            .collect(),
        verb if verb == "EVENT" => vec![json!(["OK", message[1]["id"], true, ""])],
        _ => Vec::new(),
    })
    .await;
    let link = relay.link().await;
    let mut request = link.request(&[notes()]).await.unwrap();
    sleep(Duration::from_millis(500)).await;
    let ahead = link.figures().good;
    assert!(ahead < 300, "{ahead} events were read ahead");
    for n in 0..COUNT {
        match next(&mut request).await {
            Item::Event(event) => assert_eq!(event.created_at, 1_000 + n),
            other => panic!("{n}: {other:?}"),
        }
    }
    assert!(matches!(next(&mut request).await, Item::Eose { .. }));
    assert!(link.publish(&Arc::new(event(1, 1))).await.unwrap().accepted);
}

#[tokio::test]
async fn the_limits_of_the_relay_are_respected() {
    let limits = json!({"limitation": {
        "max_subscriptions": 1, "max_filters": 2, "max_message_length": 1_024,
        "min_pow_difficulty": 40,
    }});
    let mut relay = Scripted::with_document(&limits, |_| Vec::new()).await;
    let mut options = options();
    options.timeouts.answer = Duration::from_millis(300);
    let link = relay.link_with(options.clone()).await;
    let many = link.request(&[notes(), notes(), notes()]).await;
    assert!(matches!(many, Err(LinkError::TooManyFilters { filters: 3, max: 2 })));
    let ids = Some((0..20).map(|n| EventId([n; 32])).collect());
    let long = link.request(&[Filter { ids, ..Filter::default() }]).await;
    assert!(matches!(long, Err(LinkError::TooLong { max: 1_024, .. })));
    let first = link.request(&[notes()]).await.unwrap();
    assert!(matches!(link.request(&[notes()]).await, Err(LinkError::Busy(1))));
    drop(first);
    link.request(&[notes()]).await.unwrap();
    let ack = link.publish(&Arc::new(event(1, 1))).await.unwrap();
    assert!(!ack.accepted && ack.message.starts_with("pow: "), "{ack:?}");
    relay.hears("REQ").await;
    relay.hears("CLOSE").await;

    let limits = json!({"limitation": {"max_message_length": 1_024}});
    let relay = Scripted::with_document(&limits, |_| Vec::new()).await;
    let link = relay.link_with(options).await;
    let long = Author::new(1).sign(1, 1, &[], &"x".repeat(1_000));
    let ack = link.publish(&Arc::new(long)).await.unwrap();
    assert!(!ack.accepted && ack.message.starts_with("invalid: "), "{ack:?}");
}

#[tokio::test]
async fn lying_documents_are_survived() {
    let endless = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(1 << 20));
    let wrong = http_ok(r#"{"supported_nips":"77","limitation":{"max_limit":0,"max_filters":-1}}"#);
    for (http, is_read) in [
        (no_document(), false),
        (endless, false),
        (wrong, true),
        ("HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1/\r\n\r\n".to_owned(), false),
        ("garbage\r\n\r\n".to_owned(), false),
        (String::new(), false),
    ] {
        let relay = Scripted::start(http.clone(), |_| Vec::new()).await;
        let link = relay.link().await;
        let limits = link.limits();
        let shown: String = http.chars().take(40).collect();
        assert_eq!(limits.document == Document::Read, is_read, "{shown}: {limits:?}");
        assert_eq!((limits.max_limit, limits.max_filters), (None, None));
        assert!(!limits.negentropy);
    }
}

#[tokio::test]
async fn what_is_no_websocket_says_what_it_is() {
    let (busy, moved, nothing) = (
        "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 70\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 301 Moved\r\nLocation: wss://other.example\r\nContent-Length: 0\r\n\r\n",
        "",
    );
    for answer in [busy, moved, nothing] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: Url = format!("ws://{}", listener.local_addr().unwrap()).parse().unwrap();
        let tasks = Tasks::new();
        tasks.spawn("not a relay", async move {
            while let Ok((stream, _)) = listener.accept().await {
                super::tests::answer(stream, answer).await;
            }
        });
        let error = Link::open(&url, &options(), &tasks).await.err().expect("no websocket");
        if answer == busy {
            let retry_after = Some(Duration::from_secs(70));
            assert_eq!(error, LinkError::Http { status: 429, retry_after, location: None });
        } else if answer == moved {
            assert!(error.to_string().contains("wss://other.example"), "{error}");
        } else {
            assert!(matches!(error, LinkError::Unreachable(_)), "{error}");
        }
    }
    let tasks = Tasks::new();
    let only_global = LinkOptions { only_global: true, ..options() };
    let url = "ws://localhost:1".parse().unwrap();
    let error = Link::open(&url, &only_global, &tasks).await.err().unwrap();
    assert!(matches!(error, LinkError::PrivateAddress(_)), "{error}");
}

#[tokio::test]
async fn a_link_ends_with_its_last_handle() {
    let relay = Scripted::start(no_document(), |_| Vec::new()).await;
    let link = relay.link().await;
    let other = link.clone();
    let request = link.request(&[notes()]).await.unwrap();
    drop((link, other));
    sleep(Duration::from_millis(100)).await;
    assert_eq!(relay.ended.load(Ordering::Relaxed), 0, "a request is left");
    drop(request);
    let began = Instant::now();
    while relay.ended.load(Ordering::Relaxed) == 0 {
        assert!(began.elapsed() < PATIENCE);
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(relay.opened.load(Ordering::Relaxed), 1);
    let own = Tasks::new();
    let link = Link::open(&relay.url, &options(), &own).await.unwrap();
    link.close();
    assert_eq!(closed(&link).await, LinkError::ClosedHere);
    assert!(link.request(&[notes()]).await.is_err());
    assert!(own.stop(PATIENCE).await);
}
