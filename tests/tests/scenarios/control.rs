//! The commands that talk to the running gateway, and the socket that they talk over.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
    time::Duration,
};

use nostr_gateway_tests::{Gateway, GatewayBuilder, PATIENCE, RawClient, events, eventually, http};
use nostr_sdk::Keys;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};
use tokio_tungstenite::tungstenite::Error;

use crate::{GATEWAY, alone};

const MEETING: Duration = Duration::from_secs(60);

/// An invite as another member would have made it: the one of the published test vectors.
fn invite() -> String {
    let vectors = include_str!("../../../docs/private-topics.json");
    let vectors: Value = serde_json::from_str(vectors).unwrap();
    vectors["invite"].as_str().unwrap().to_owned()
}

/// The admin key of the published test vectors.
fn admin_key() -> String {
    let vectors = include_str!("../../../docs/private-topics.json");
    let vectors: Value = serde_json::from_str(vectors).unwrap();
    vectors["admin key"].as_str().unwrap().to_owned()
}

/// The same with one wrong character.
fn mistyped() -> String {
    let invite = invite();
    let wrong = if invite.as_bytes()[60] == b'q' { "p" } else { "q" };
    format!("{}{wrong}{}", &invite[..60], &invite[61..])
}

fn builder(name: &str) -> GatewayBuilder {
    GatewayBuilder::new(GATEWAY, name).topics(&["town"])
}

/// The names of the topics that a gateway says it is in.
async fn topics(gateway: &Gateway) -> Vec<String> {
    let list = gateway.command(&["topic", "list", "--json"]).await.json();
    let topics = list["topics"].as_array().unwrap().iter();
    topics.map(|topic| topic["name"].as_str().unwrap().to_owned()).collect()
}

async fn refused_upgrade(url: &str, headers: &[(&'static str, &str)]) -> u16 {
    match RawClient::try_connect_with(url, headers).await {
        Err(Error::Http(response)) => response.status().as_u16(),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("{url} lets us in"),
    }
}

/// What comes back when these bytes are sent to a control socket.
async fn raw(socket: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    // What is refused is not read to its end.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let reading = stream.read_to_end(&mut answer);
    let read = tokio::time::timeout(PATIENCE, reading).await.expect("an answer");
    assert!(read.is_ok() || !answer.is_empty(), "{read:?}");
    String::from_utf8(answer).unwrap()
}

fn post(body: &str) -> String {
    format!("POST /control HTTP/1.0\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_gateway_the_commands_say_so() {
    let builder = builder("nobody");
    let data_dir = builder.data_dir().to_str().unwrap().to_owned();
    let (invite, mistyped, admin_key) = (invite(), mistyped(), admin_key());
    let commands: [&[&str]; 16] = [
        &["status"],
        &["status", "--json"],
        &["peers"],
        &["topic", "list"],
        &["topic", "create", "cats"],
        &["topic", "create", "cats", "--private"],
        &["topic", "join", "cats"],
        &["topic", "join", &invite],
        &["topic", "leave", "cats"],
        &["topic", "show", "cats"],
        &["topic", "peers", "cats"],
        &["topic", "rotate", "cats"],
        &["topic", "sync", "cats"],
        &["topic", "invite", "cats"],
        &["topic", "export-admin", "cats"],
        &["topic", "import-admin", &admin_key],
    ];
    for command in commands {
        builder.command(command).await.refuses(1, &["no gateway is running in", &data_dir]);
    }
    assert!(!builder.data_dir().exists(), "asking makes no data directory");
    // What is wrong is wrong, whether anybody is there or not.
    let long = "x".repeat(129);
    for (command, words) in [
        (&["topic", "join", ""][..], &["empty"][..]),
        (&["topic", "join", &long], &["128 bytes", "invite"]),
        (&["topic", "join", &mistyped], &["mistyped"]),
        (&["topic", "leave", &invite], &["invite"]),
        (&["topic", "import-admin", &invite], &["admin key", "mistyped"]),
        (&["topic", "join", &admin_key], &["admin key", "import-admin"]),
        (&["topic", "create", "a\nb"], &["control characters"]),
        (&["topic", "rotate", "cats", "--grace", "10"], &["10m"]),
        (&["topic", "dance", "cats"], &["dance"]),
        (&["topic", "join"], &["NAME-OR-INVITE"]),
    ] {
        builder.command(command).await.refuses(2, words);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_joined_left_and_remembered() {
    let _alone = alone().await;
    let a = builder("A").start().await;
    let peers = format!("[{:?}]", a.as_peer().await);
    let b = builder("B").set("discovery", "peers", &peers).start().await;
    a.wait_for_neighbors("town", 1, MEETING).await;

    // A name that must be escaped in the URL.
    for gateway in [&a, &b] {
        let answer = gateway.command(&["topic", "join", "cats & dogs", "--json"]).await.json();
        assert_eq!(answer["already"], false, "{answer}");
        let url = gateway.topic_url("cats%20%26%20dogs");
        assert_eq!(answer["url"], url, "{answer}");
        let again = gateway.command(&["topic", "create", "cats & dogs"]).await;
        assert!(again.stdout.contains("already"), "{again:?}");
        assert_eq!(topics(gateway).await, ["cats & dogs", "town"]);
    }
    b.wait_for_neighbors("cats & dogs", 1, MEETING).await;
    let (url_a, url_b) = (a.topic_url("cats%20%26%20dogs"), b.topic_url("cats%20%26%20dogs"));
    let mut at_b = RawClient::connect(&url_b).await;
    assert!(at_b.req("live", &[json!({})]).await.is_empty());
    let mut at_a = RawClient::connect(&url_a).await;
    let event = events::note(&Keys::generate(), "meow");
    at_a.accept(&event).await;
    assert_eq!(at_b.live("live").await["id"], event.id.to_hex());
    // Routing knows it too: a tag leads there.
    let tagged = events::event(&Keys::generate(), 1, "x", &[&["t", "cats & dogs"]], events::now());
    RawClient::connect(&a.url()).await.accept(&tagged).await;
    assert_eq!(at_b.live("live").await["id"], tagged.id.to_hex());

    looks_at_a_topic(&a, &b).await;

    // Leaving: the URL is gone, its clients are sent away, the neighbor hears of it at once.
    let left = a.command(&["topic", "leave", "cats & dogs"]).await;
    assert_eq!((left.code, left.stdout.as_str()), (Some(0), "left cats & dogs\n"), "{left:?}");
    let (notices, close) = at_a.farewell().await;
    assert_eq!(notices, ["the gateway has left this topic"]);
    assert_eq!(close, Some((1001, "the gateway has left this topic".to_owned())));
    assert_eq!(http::get(&a.relay, "/topic/cats%20%26%20dogs").await.status, 404);
    assert_eq!(refused_upgrade(&url_a, &[]).await, 404);
    assert_eq!(topics(&a).await, ["town"]);
    eventually("B sees A leave", Duration::from_secs(3), async || {
        let state = b.topic_status("cats & dogs").await["state"].take();
        (state == "disconnected").then_some(())
    })
    .await;
    assert_eq!(b.topic_status("town").await["state"], "joined", "in that topic alone");
    a.command(&["topic", "leave", "cats & dogs"]).await.refuses(1, &["not in the topic"]);
    // What it brought stays.
    let stored = RawClient::connect(&a.url()).await.stored_ids(&[json!({"kinds": [1]})]).await;
    assert!(stored.contains(&event.id.to_hex()), "{stored:?}");

    // What was joined is joined after a restart, what was left is not; also after a crash.
    a.command(&["topic", "join", "dogs"]).await.succeeded();
    let mut a = a;
    a.kill9().await;
    a.command(&["topic", "list"]).await.refuses(1, &["no gateway is running"]);
    let a = a.restart().await;
    assert_eq!(topics(&a).await, ["dogs", "town"]);
    let mut b = b;
    assert!(b.interrupt().await.success());
    let (notices, close) = at_b.farewell().await;
    assert!(notices.is_empty(), "{notices:?}");
    assert_eq!(close, Some((1001, "the gateway is shutting down".to_owned())));
    assert!(!b.control_socket().exists(), "an orderly end takes the socket away");
    b.command(&["status"]).await.refuses(1, &["no gateway is running"]);
    let b = b.restart().await;
    assert_eq!(topics(&b).await, ["cats & dogs", "town"]);
    let mut client = RawClient::connect(&b.topic_url("cats%20%26%20dogs")).await;
    assert_eq!(client.stored_ids(&[json!({"ids": [event.id.to_hex()]})]).await.len(), 1);
}

/// `show`, `peers` and `status`, while A and B are neighbors in two topics.
async fn looks_at_a_topic(a: &Gateway, b: &Gateway) {
    let shown = a.command(&["topic", "show", "cats & dogs", "--json"]).await.json();
    assert_eq!(shown["topic"]["how"], "command", "{shown}");
    assert_eq!(shown["topic"]["state"], "joined", "{shown}");
    assert_eq!(shown["peers"][0]["id"], b.endpoint, "{shown}");
    let shown = a.command(&["topic", "show", "cats & dogs"]).await;
    assert!(shown.stdout.contains(&b.endpoint) && shown.stdout.contains("joined 1"), "{shown:?}");
    let peers = b.command(&["topic", "peers", "town"]).await;
    assert!(peers.stdout.contains(&a.endpoint), "{peers:?}");

    let peers = b.command(&["peers", "--json"]).await.json();
    assert_eq!(peers["endpoint"], b.endpoint, "{peers}");
    assert!(!peers["addresses"].as_array().unwrap().is_empty(), "{peers}");
    let found = peers["peers"].as_array().unwrap();
    assert_eq!(found.len(), 1, "one gateway, however many topics: {peers}");
    assert_eq!(found[0]["id"], a.endpoint, "{peers}");
    assert_eq!(found[0]["topics"]["town"], "configured", "{peers}");
    assert_eq!(found[0]["path"], "direct", "{peers}");
    assert!(found[0]["rtt_ms"].as_f64().unwrap() > 0.0, "{peers}");
    let peers = b.command(&["peers"]).await;
    let own = peers.stdout.lines().next().unwrap();
    assert!(own.contains("endpoint") && own.contains(&b.endpoint), "our own comes first: {own}");
    assert!(peers.stdout.contains("configured") && peers.stdout.contains("direct"), "{peers:?}");

    let status = a.command(&["status", "--json"]).await.json();
    assert_eq!(status["endpoint"], a.endpoint, "{status}");
    assert_eq!(status["relay"], format!("ws://{}", a.relay), "{status}");
    assert_eq!(status["store"]["events"], 2, "{status}");
    assert!(status["store"]["bytes"].as_u64().unwrap() > 4_096, "{status}");
    assert!(status["uptime_s"].as_u64().unwrap() < 600, "{status}");
    assert_eq!(status["trouble"], Value::Null, "{status}");
    let told = a.command(&["status"]).await;
    for part in [&a.relay, &a.admin, &a.endpoint, "2 events", "cats & dogs", "joined 1", "well"] {
        assert!(told.stdout.contains(part), "{part}: {told:?}");
    }
    assert_eq!(a.metric(r#"nostr_gateway_topic_state{topic="town",state="joined""#).await, 1);
    assert_eq!(a.metric(r#"nostr_gateway_topic_state{topic="town",state="alone""#).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_refused_and_changes_nothing() {
    let gateway = builder("refusing").table("[[private_topic]]\nname = \"home\"").start().await;
    let refuses = async |command: &[&str], words: &[&str]| {
        gateway.command(command).await.refuses(1, words);
    };
    refuses(&["topic", "leave", "town"], &["topics.join", "restart"]).await;
    refuses(&["topic", "leave", "nowhere"], &["not in the topic"]).await;
    refuses(&["topic", "show", "nowhere"], &["not in the topic"]).await;
    refuses(&["topic", "peers", "nowhere"], &["not in the topic"]).await;
    refuses(&["topic", "join", "home"], &["private"]).await;
    refuses(&["topic", "leave", "home"], &["private"]).await;
    // A mistyped invite is never a new topic, and is nowhere repeated.
    let (whole, mistyped) = (invite(), mistyped());
    for (text, code, says) in [
        (mistyped.clone(), 2, "mistyped"),
        (whole[..100].to_owned(), 2, "mistyped"),
        (whole.replacen("ngw1", "ngv1", 1), 2, "mistyped"),
    ] {
        let refused = gateway.command(&["topic", "join", &text]).await;
        refused.refuses(code, &[says]);
        assert!(!refused.stderr.contains(&text[5..60]), "{refused:?}");
        let body = json!({ "command": "topic_join", "topic": text }).to_string();
        let answer = raw(&gateway.control_socket(), &post(&body)).await;
        assert!(answer.starts_with("HTTP/1.0 400") && !answer.contains(&text[5..60]), "{answer}");
    }
    assert_eq!(topics(&gateway).await, ["town"]);
    assert!(!gateway.log().iter().any(|line| line.contains(&whole[5..60])), "it is a secret");
    // With a hundred topics there is no room.
    for n in 1..100 {
        let body = format!(r#"{{"command":"topic_join","topic":"topic {n}"}}"#);
        let answer = raw(&gateway.control_socket(), &post(&body)).await;
        assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    }
    refuses(&["topic", "join", "one more"], &["at most 100 topics"]).await;
    gateway.command(&["topic", "leave", "topic 7"]).await.succeeded();
    gateway.command(&["topic", "join", "one more"]).await.succeeded();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_its_owners_and_takes_commands_alone() {
    let builder = builder("socket");
    // What a killed gateway would leave.
    fs::create_dir_all(builder.data_dir()).unwrap();
    let socket = builder.data_dir().join("control.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    builder.command(&["status"]).await.refuses(1, &["no gateway is running"]);
    let gateway = builder.clone().start().await;
    let found = fs::symlink_metadata(&socket).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o600);
    // Whoever made the directory: what is stored is for the owner's eyes.
    for file in ["gateway.db", "search.db"] {
        let mode = fs::metadata(builder.data_dir().join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{file}");
    }
    gateway.command(&["status"]).await.succeeded();

    let long = format!(r#"{{"command":"topic_join","topic":"{}"}}"#, "x".repeat(200_000));
    for (request, code) in [
        ("GET /control HTTP/1.0\r\n\r\n".to_owned(), 405),
        ("POST / HTTP/1.0\r\nContent-Length: 0\r\n\r\n".to_owned(), 404),
        (post(""), 400),
        (post("{}"), 400),
        (post(r#"{"command":"stop"}"#), 400),
        (post(r#"{"command":"topic_leave","name":"town","force":true}"#), 400),
        (post(r#"{"command":"topic_join","topic":"a\nb"}"#), 400),
        (post(&long), 400),
        (post(r#"{"command":"topic_leave","name":"nowhere"}"#), 404),
        (post(r#"{"command":"topic_leave","name":"town"}"#), 409),
        (post(r#"{"command":"topic_sync","name":"nowhere"}"#), 404),
        (post(r#"{"command":"topic_list"}"#), 200),
    ] {
        let answer = raw(&socket, &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.0 {code}")), "{request:.80}: {answer}");
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let is_sentence = |body: Value| body["error"].as_str().is_some_and(|text| text.len() > 10);
        if (400..404).contains(&code) || code == 409 {
            assert!(is_sentence(serde_json::from_str(body).unwrap()), "{body}");
        }
    }
    // Half a request holds up nobody.
    let mut half = UnixStream::connect(&socket).await.unwrap();
    half.write_all(b"POST /control HTTP/1.0\r\nContent-Length: 100\r\n\r\n{").await.unwrap();
    gateway.command(&["topic", "list"]).await.succeeded();

    // The listener for web pages and Prometheus tells, and obeys nobody.
    let listed = http::get(&gateway.admin, "/topics").await;
    let listed: Value = serde_json::from_str(&listed.body).unwrap();
    assert_eq!(listed["topics"][0]["name"], "town");
    assert_eq!(http::get(&gateway.admin, "/peers").await.status, 200);
    let join = r#"{"command":"topic_join","topic":"evil"}"#;
    for path in ["/control", "/topics", "/status", "/"] {
        let answer = http::with_body(&gateway.admin, "POST", path, &[], join).await;
        assert_eq!(answer.status, 405, "{path}");
    }
    assert_eq!(http::get(&gateway.admin, "/control").await.status, 404);
    assert_eq!(topics(&gateway).await, ["town"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn visited_topics_are_joined_and_left_again() {
    let gateway = builder("visits")
        .set("topics", "join_on_visit", "1")
        .set("topics", "visit_idle_s", "1")
        .set("relay", "trusted_origins", r#"["https://friend.example"]"#)
        .start()
        .await;
    let url = |name: &str| gateway.topic_url(name);
    // A look is no visit, and a page that nobody trusts decides nothing.
    assert_eq!(http::get(&gateway.relay, "/topic/cats").await.status, 404);
    let page = [("Origin", "https://evil.example")];
    assert_eq!(refused_upgrade(&url("cats"), &page).await, 404);
    let proxied = [("X-Forwarded-For", "203.0.113.7")];
    assert_eq!(refused_upgrade(&url("cats"), &proxied).await, 404);
    assert_eq!(refused_upgrade(&url("ngw1cats"), &[]).await, 404);
    assert_eq!(topics(&gateway).await, ["town"]);

    let mut visitor = RawClient::connect(&url("cats")).await;
    visitor.accept(&events::note(&Keys::generate(), "meow")).await;
    assert_eq!(topics(&gateway).await, ["cats", "town"]);
    assert_eq!(gateway.topic_status("cats").await["how"], "visit");
    assert_eq!(refused_upgrade(&url("dogs"), &[]).await, 404, "one is all that is allowed");
    // As long as somebody is there, it stays.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(topics(&gateway).await, ["cats", "town"]);
    drop(visitor);
    let left = async || (topics(&gateway).await == ["town"]).then_some(());
    eventually("cats is left", PATIENCE, left).await;
    assert_eq!(http::get(&gateway.relay, "/topic/cats").await.status, 404);
    // There is room for another one, also for a page that is trusted; and what is then joined by
    // command stays.
    drop(RawClient::connect_from_page(&url("dogs"), "https://friend.example").await);
    gateway.command(&["topic", "join", "dogs"]).await.succeeded();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(topics(&gateway).await, ["dogs", "town"]);

    // What the operator leaves, no client brings back by coming again.
    let mut visitor = RawClient::connect(&url("mice")).await;
    gateway.command(&["topic", "leave", "mice"]).await.succeeded();
    let (notices, _) = visitor.farewell().await;
    assert_eq!(notices, ["the gateway has left this topic"]);
    match RawClient::try_connect_with(&url("mice"), &[]).await {
        Err(Error::Http(response)) => {
            assert_eq!(response.status().as_u16(), 404);
            let body = String::from_utf8(response.into_body().unwrap_or_default()).unwrap();
            assert!(body.contains("operator") && body.contains("topic join"), "{body}");
        }
        other => panic!("{:?}", other.err()),
    }
    assert_eq!(topics(&gateway).await, ["dogs", "town"]);
    gateway.command(&["topic", "join", "mice"]).await.succeeded();
    RawClient::connect(&url("mice")).await;
}
