//! What is not for everybody: messages between parties (NIP-04, NIP-17, NIP-59) and private topics,
//! in every way out of the relay.

use nostr_gateway_tests::{Gateway, GatewayBuilder, PATIENCE, RawClient, events, eventually, http};
use nostr_sdk::{Event, Keys};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Error;

use crate::GATEWAY;

const EVIL: &str = "https://evil.example";
const FRIEND: &str = "https://friend.example";

fn message(kind: u16, from: &Keys, to: &Keys) -> Event {
    let tags: [&[&str]; 2] = [&["p", &to.public_key().to_hex()], &["t", "x"]];
    events::event(from, kind, "secret", &tags, events::now())
}

async fn authenticated(gateway: &Gateway, keys: &Keys) -> RawClient {
    let mut client = RawClient::connect(&gateway.url()).await;
    client.authenticate(keys, &gateway.url()).await;
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_shown_to_their_parties_alone() {
    messages_are_for_their_parties("messages", async |gateway| {
        RawClient::connect(&gateway.url()).await
    })
    .await;
}

/// The same of web pages: a page of a party is a party, and any other is nobody.
#[tokio::test(flavor = "multi_thread")]
async fn messages_are_shown_to_the_web_pages_of_their_parties_alone() {
    for (name, page) in [("evil-page", EVIL), ("trusted-page", FRIEND)] {
        messages_are_for_their_parties(name, async |gateway| {
            RawClient::connect_from_page(&gateway.url(), page).await
        })
        .await;
    }
}

async fn messages_are_for_their_parties(name: &str, connect: impl AsyncFn(&Gateway) -> RawClient) {
    let gateway = GatewayBuilder::new(GATEWAY, name)
        .set("relay", "trusted_origins", &format!("[{FRIEND:?}]"))
        .start()
        .await;
    let (alice, bob, eve) = (Keys::generate(), Keys::generate(), Keys::generate());
    let as_party = async |keys: &Keys| {
        let mut client = connect(&gateway).await;
        client.authenticate(keys, &gateway.url()).await;
        client
    };
    let mut at_alice = as_party(&alice).await;
    let mut at_bob = as_party(&bob).await;
    let mut at_eve = as_party(&eve).await;
    let mut nobody = connect(&gateway).await;
    for client in [&mut at_alice, &mut at_bob, &mut at_eve, &mut nobody] {
        assert!(client.req("live", &[json!({})]).await.is_empty());
    }

    // NIP-04: a direct message is for both. NIP-59: a gift wrap is for its recipient; the key that
    // signed it is nobody's.
    let (dm, wrap) = (message(4, &alice, &bob), message(1_059, &alice, &bob));
    nobody.accept(&dm).await;
    nobody.accept(&wrap).await;
    // NIP-59: 21059 is ephemeral.
    let passing = message(21_059, &alice, &bob);
    nobody.accept(&passing).await;
    for event in [&dm, &wrap, &passing] {
        let id = json!(event.id.to_hex());
        at_bob.wait_for(|m| m[0] == "EVENT" && m[2]["id"] == id, "bob's own").await;
    }
    assert_eq!(at_alice.live("live").await["id"], dm.id.to_hex());
    for client in [&mut at_alice, &mut at_bob, &mut at_eve, &mut nobody] {
        client.expect_silence().await;
    }

    // Whatever is asked, and however.
    let ids = json!({"ids": [dm.id.to_hex(), wrap.id.to_hex(), passing.id.to_hex()]});
    let questions = [
        json!({}),
        ids,
        json!({"kinds": [4, 1_059, 21_059, 1]}),
        json!({"kinds": [4, 1_059]}),
        json!({"authors": [alice.public_key().to_hex()]}),
        json!({"authors": [alice.public_key().to_hex()], "kinds": [4, 1_059, 1]}),
        json!({"#p": [bob.public_key().to_hex()]}),
        json!({"#t": ["x"], "kinds": [1_059, 4, 1]}),
        json!({"#t": ["x"], "limit": 1, "kinds": [1_059, 4, 1, 7]}),
    ];
    for (n, question) in questions.iter().enumerate() {
        let limited = question.get("limit").is_some();
        for (client, seen) in
            [(&mut at_bob, vec![&dm, &wrap]), (&mut at_alice, vec![&dm]), (&mut at_eve, vec![])]
        {
            let stored = client.stored_ids(std::slice::from_ref(question)).await;
            let expected = if limited { seen.len().min(1) } else { seen.len() };
            assert_eq!(stored.len(), expected, "{n} {question}");
            assert!(stored.iter().all(|id| events::ids(seen.clone()).contains(id)), "{question}");
            assert_eq!(client.count(std::slice::from_ref(question)).await as usize, seen.len());
            let found = client.negentropy(question, &[]).await.unwrap();
            assert_eq!(found.only_there.len(), expected, "{n} {question}");
        }
    }
    for question in &questions {
        let kinds = question["kinds"].as_array();
        let only_guarded = kinds.is_some_and(|kinds| !kinds.contains(&json!(1)));
        let one = std::slice::from_ref(question);
        if only_guarded {
            // NIP-42: what nobody may see without a key is refused.
            for reason in [
                nobody.refused_req("q", one).await,
                nobody.refused_count("q", one).await,
                nobody.negentropy(question, &[]).await.unwrap_err(),
            ] {
                assert!(reason.starts_with("auth-required: "), "{question}: {reason}");
            }
        } else {
            assert!(nobody.stored_ids(one).await.is_empty(), "{question}");
            assert_eq!(nobody.count(one).await, 0, "{question}");
            let found = nobody.negentropy(question, &[]).await.unwrap();
            assert!(found.only_there.is_empty(), "{question}");
        }
    }
    // An id of a message that is known to exist finds nothing either.
    let have = nobody.negentropy(&json!({}), &[dm.clone(), wrap.clone()]).await.unwrap();
    assert_eq!(have.only_here, events::ids([&dm, &wrap]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mixed_question_is_answered_with_what_may_be_seen() {
    let gateway = GatewayBuilder::new(GATEWAY, "mixed").start().await;
    let (alice, bob) = (Keys::generate(), Keys::generate());
    let mut client = RawClient::connect(&gateway.url()).await;
    let (note, dm) = (events::note(&alice, "for all"), message(4, &alice, &bob));
    client.accept(&note).await;
    client.accept(&dm).await;
    client.send(&json!(["REQ", "mixed", {"kinds": [4]}, {"kinds": [1, 1059]}])).await;
    // NIP-42: the relay may send a challenge at any moment.
    let challenge = client.next().await;
    assert_eq!(challenge[0], "AUTH");
    assert_eq!(client.live("mixed").await["id"], note.id.to_hex());
    // NIP-67: there is more for whoever authenticates.
    assert_eq!(client.next().await, json!(["EOSE", "mixed"]));
    client.authenticate_with(&bob, &gateway.url(), challenge[1].as_str().unwrap()).await;
    let both = client.stored_ids(&[json!({"kinds": [4]}), json!({"kinds": [1, 1059]})]).await;
    assert_eq!(both.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_recipient_of_a_gift_wrap_deletes_it() {
    let gateway = GatewayBuilder::new(GATEWAY, "wraps").start().await;
    let (nobody, bob, eve) = (Keys::generate(), Keys::generate(), Keys::generate());
    let mut at_bob = authenticated(&gateway, &bob).await;
    let (wrap, other) = (message(1_059, &nobody, &bob), message(1_059, &nobody, &eve));
    at_bob.accept(&wrap).await;
    at_bob.accept(&other).await;
    let delete = |keys: &Keys, event: &Event| {
        let tags: [&[&str]; 2] = [&["e", &event.id.to_hex()], &["k", "1059"]];
        events::event(keys, 5, "", &tags, events::now())
    };
    // NIP-09 "Deletion of Gift Wrap Events by Recipient": by no other.
    at_bob.accept(&delete(&eve, &wrap)).await;
    at_bob.accept(&delete(&bob, &other)).await;
    let wraps = [json!({"kinds": [1_059]})];
    assert_eq!(at_bob.stored_ids(&wraps).await, [wrap.id.to_hex()]);
    let mut at_eve = authenticated(&gateway, &eve).await;
    assert_eq!(at_eve.stored_ids(&wraps).await, [other.id.to_hex()]);
    at_bob.accept(&delete(&bob, &wrap)).await;
    assert!(at_bob.stored_ids(&wraps).await.is_empty());
    at_bob.refuse(&wrap, "blocked").await;

    // Also before it arrives: by the recipient, and by nobody else.
    let wrapped = |text: &str, to: &Keys| {
        let tags: [&[&str]; 1] = [&["p", &to.public_key().to_hex()]];
        events::event(&nobody, 1_059, text, &tags, events::now())
    };
    let (late, kept) = (wrapped("late", &bob), wrapped("kept", &bob));
    at_eve.accept(&delete(&eve, &late)).await;
    at_eve.accept(&delete(&eve, &kept)).await;
    at_bob.accept(&delete(&bob, &late)).await;
    at_bob.refuse(&late, "blocked").await;
    at_bob.accept(&kept).await;
    assert_eq!(at_bob.stored_ids(&wraps).await, [kept.id.to_hex()]);
    let to_eve = wrapped("to eve", &eve);
    at_bob.accept(&delete(&bob, &to_eve)).await;
    at_bob.accept(&to_eve).await;
    assert!(at_eve.stored_ids(&wraps).await.contains(&to_eve.id.to_hex()));
    // A message of another kind is its author's to delete alone.
    let dm = message(4, &nobody, &bob);
    at_bob.accept(&delete(&bob, &dm)).await;
    at_bob.accept(&dm).await;
}

/// A gateway with a private topic and one event in it, and one more that is also public.
struct Home {
    gateway: Gateway,
    reader: Keys,
    secret: Event,
    keys: Keys,
}

impl Home {
    async fn start() -> Self {
        let (reader, keys) = (Keys::generate(), Keys::generate());
        let gateway = GatewayBuilder::new(GATEWAY, "home")
            .topics(&["town"])
            .set("relay", "trusted_origins", &format!("[{FRIEND:?}]"))
            .table(&format!(
                "[[private_topic]]\nname = \"family\"\nreaders = [\"{}\"]",
                reader.public_key().to_hex()
            ))
            .start()
            .await;
        let secret = events::event(&keys, 1, "at home", &[&["t", "x"]], events::now() - 5);
        let home = Self { gateway, reader, secret, keys };
        let mut local = RawClient::connect(&home.topic()).await;
        local.accept(&home.secret).await;
        // Else a search would find nothing for another reason.
        eventually("the secret is in the index", PATIENCE, async || {
            let found = local.stored_ids(&[json!({"search": "home"})]).await;
            (found == [home.secret.id.to_hex()]).then_some(())
        })
        .await;
        home
    }

    fn topic(&self) -> String {
        self.gateway.topic_url("family")
    }

    /// An event that there was not before.
    fn another(&self, text: &str) -> Event {
        events::note(&Keys::generate(), text)
    }

    fn questions(&self) -> Vec<Value> {
        vec![
            json!({}),
            json!({"ids": [self.secret.id.to_hex()]}),
            json!({"kinds": [1]}),
            json!({"authors": [self.keys.public_key().to_hex()]}),
            json!({"authors": [self.keys.public_key().to_hex()], "kinds": [1, 7]}),
            json!({"#t": ["x"]}),
            json!({"search": "home"}),
        ]
    }

    /// Checks that this client gets nothing on `/`: stored, live, counted, searched, reconciled.
    async fn sees_nothing_on_the_root(&self, client: &mut RawClient) {
        for question in self.questions() {
            let one = std::slice::from_ref(&question);
            assert!(client.stored_ids(one).await.is_empty(), "{question}");
            assert_eq!(client.count(one).await, 0, "{question}");
            let found = client.negentropy(&question, &[]).await.unwrap();
            assert!(found.only_there.is_empty(), "{question}");
        }
        // Live: stored events and passing ones. What comes after is seen, so those were not held up.
        assert!(client.req("live", &[json!({})]).await.is_empty());
        let mut local = RawClient::connect(&self.topic()).await;
        local.accept(&self.another("live at home")).await;
        let passing =
            events::event(&Keys::generate(), 20_001, "passing at home", &[], events::now());
        local.accept(&passing).await;
        let public = self.another("for all");
        RawClient::connect(&self.gateway.topic_url("town")).await.accept(&public).await;
        assert_eq!(client.live("live").await["id"], public.id.to_hex());
        client.expect_silence().await;
    }

    /// Checks that every verb is refused with this prefix at the topic's own URL.
    async fn is_refused_at_the_topic(&self, client: &mut RawClient, prefix: &str) {
        let mut reasons = Vec::new();
        for question in self.questions() {
            let one = std::slice::from_ref(&question);
            reasons.push(client.refused_req("q", one).await);
            reasons.push(client.refused_count("q", one).await);
            reasons.push(client.negentropy(&question, &[]).await.unwrap_err());
        }
        let event = self.another("from outside");
        let (accepted, reason) = client.publish(&event).await;
        assert!(!accepted);
        reasons.push(reason);
        for reason in reasons {
            assert!(reason.starts_with(&format!("{prefix}: ")), "{reason}");
        }
        let mut local = RawClient::connect(&self.topic()).await;
        assert!(local.stored_ids(&[json!({"ids": [event.id.to_hex()]})]).await.is_empty());
    }

    /// Checks that this client sees the topic on both URLs, stored and live.
    async fn sees_everything(&self, root: &mut RawClient, topic: &mut RawClient) {
        let secret = self.secret.id.to_hex();
        let author = self.keys.public_key().to_hex();
        for client in [&mut *root, &mut *topic] {
            for one in [
                [json!({"ids": [secret]})],
                [json!({"search": "home", "authors": [author]})],
                [json!({"search": "\"at home\"", "until": self.secret.created_at.as_secs()})],
            ] {
                assert_eq!(client.stored_ids(&one).await, [secret.as_str()], "{one:?}");
                assert_eq!(client.count(&one).await, 1, "{one:?}");
                let found = client.negentropy(&one[0], &[]).await.unwrap();
                assert_eq!(found.only_there, [secret.as_str()], "{one:?}");
            }
            client.req("live", &[json!({"limit": 0})]).await;
        }
        let event = self.another("said by a reader");
        topic.accept(&event).await;
        for client in [root, topic] {
            assert_eq!(client.live("live").await["id"], event.id.to_hex());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_web_page_gets_nothing_of_a_private_topic() {
    let home = Home::start().await;
    let mut root = RawClient::connect_from_page(&home.gateway.url(), EVIL).await;
    home.sees_nothing_on_the_root(&mut root).await;
    // Origins that look like a trusted one, and that of a page without one (RFC 6454 §7.3).
    for origin in ["null", "http://friend.example", "https://friend.example.evil.example", ""] {
        let mut root = RawClient::connect_from_page(&home.gateway.url(), origin).await;
        let ids = [json!({"ids": [home.secret.id.to_hex()]})];
        assert!(root.stored_ids(&ids).await.is_empty(), "{origin:?}");
    }
    let mut topic = RawClient::connect_from_page(&home.topic(), EVIL).await;
    home.is_refused_at_the_topic(&mut topic, "auth-required").await;
    let challenge = topic.next_challenge().await;

    // Whoever is no reader gains nothing by authenticating (NIP-42: "restricted").
    let stranger = Keys::generate();
    topic.authenticate_with(&stranger, &home.gateway.url(), &challenge).await;
    home.is_refused_at_the_topic(&mut topic, "restricted").await;
    let mut root = RawClient::connect_from_page(&home.gateway.url(), EVIL).await;
    root.authenticate(&stranger, &home.gateway.url()).await;
    let ids = [json!({"ids": [home.secret.id.to_hex()]})];
    assert!(root.stored_ids(&ids).await.is_empty());
    // No tag leads into the topic.
    let tagged = events::event(&stranger, 1, "let me in", &[&["t", "family"]], events::now());
    root.accept(&tagged).await;
    let mut local = RawClient::connect(&home.topic()).await;
    assert!(local.stored_ids(&[json!({"ids": [tagged.id.to_hex()]})]).await.is_empty());
}

/// One without readers is for trusted connections alone: others need not know that it is here.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_web_page_does_not_learn_that_a_private_topic_is_here() {
    let reader = Keys::generate().public_key().to_hex();
    let gateway = GatewayBuilder::new(GATEWAY, "names")
        .topics(&["town"])
        .set("topics", "join_on_visit", "2")
        .set("relay", "trusted_origins", &format!("[{FRIEND:?}]"))
        .table(&format!(
            "[[private_topic]]\nname = \"family\"\nreaders = [{reader:?}]\n\
             [[private_topic]]\nname = \"diary\""
        ))
        .start()
        .await;
    gateway.command(&["topic", "create", "den", "--private"]).await.succeeded();
    let opens =
        async |topic: &str, headers: &[(&'static str, &str)]| match RawClient::try_connect_with(
            &gateway.topic_url(topic),
            headers,
        )
        .await
        {
            Ok(_) => (101, String::new()),
            Err(Error::Http(response)) => {
                let status = response.status().as_u16();
                (status, String::from_utf8(response.into_body().unwrap_or_default()).unwrap())
            }
            Err(error) => panic!("{error}"),
        };
    let untrusted = [("Origin", EVIL), ("X-Forwarded-For", "203.0.113.7")];
    for header in untrusted {
        let nowhere = opens("nowhere", &[header]).await;
        assert_eq!(nowhere.0, 404);
        for topic in ["diary", "den"] {
            assert_eq!(opens(topic, &[header]).await, nowhere, "{header:?} {topic}");
        }
        // What is public, and what a reader comes to authenticate at.
        for topic in ["town", "family"] {
            assert_eq!(opens(topic, &[header]).await.0, 101, "{header:?} {topic}");
        }
    }
    for topic in ["town", "family", "diary", "den"] {
        assert_eq!(opens(topic, &[]).await.0, 101, "{topic}");
        assert_eq!(opens(topic, &[("Origin", FRIEND)]).await.0, 101, "{topic}");
        // The page that the operator named is on another site than this relay.
        let named = [("Origin", FRIEND), ("Sec-Fetch-Site", "cross-site")];
        assert_eq!(opens(topic, &named).await.0, 101, "{topic}");
    }

    // A page that just asks does not say its origin. Browsers tell that it is one, or, for a name that
    // its owner lets lead to this machine (DNS rebinding), at least the name.
    let rebound = format!("evil.example:{}", gateway.relay.rsplit_once(':').unwrap().1);
    let pages = [
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
        ("Sec-Fetch-Site", "same-origin"),
        ("Host", rebound.as_str()),
    ];
    let accept = ("Accept", "application/nostr+json");
    let gets = async |method: &str, topic: &str, headers: &[(&str, &str)]| {
        let path = format!("/topic/{topic}");
        let answer = http::request(&gateway.relay, method, &path, headers).await;
        (answer.status, answer.body)
    };
    for page in pages {
        for method in ["GET", "HEAD", "OPTIONS", "POST"] {
            for headers in [&[page][..], &[page, accept]] {
                let nowhere = gets(method, "nowhere", headers).await;
                assert_eq!(nowhere.0, 404);
                for topic in ["diary", "den"] {
                    let got = gets(method, topic, headers).await;
                    assert_eq!(got, nowhere, "{method} {topic} {headers:?}");
                }
            }
        }
        // Nor does a websocket that comes so.
        let nowhere = opens("nowhere", &[page]).await;
        for topic in ["diary", "den"] {
            assert_eq!(opens(topic, &[page]).await, nowhere, "{page:?} {topic}");
        }
        for topic in ["town", "family"] {
            assert_eq!(gets("GET", topic, &[page]).await.0, 200, "{page:?} {topic}");
            assert_eq!(opens(topic, &[page]).await.0, 101, "{page:?} {topic}");
        }
    }
    // A user who types the address, and programs that call the relay by its names.
    let port = gateway.relay.rsplit_once(':').unwrap().1;
    let (localhost, other) = (format!("localhost:{port}"), format!("[::1]:{port}"));
    for header in [("Sec-Fetch-Site", "none"), ("Host", &localhost), ("Host", &other)] {
        for topic in ["town", "family", "diary", "den"] {
            assert_eq!(gets("GET", topic, &[header]).await.0, 200, "{header:?} {topic}");
            assert_eq!(opens(topic, &[header]).await.0, 101, "{header:?} {topic}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_page_that_hides_its_origin_is_a_stranger_all_the_same() {
    for page in [("Host", "evil.example"), ("Sec-Fetch-Site", "cross-site")] {
        let home = Home::start().await;
        let url = home.gateway.url();
        let mut root = RawClient::try_connect_with(&url, &[page]).await.ok().unwrap();
        home.sees_nothing_on_the_root(&mut root).await;
        let mut topic = RawClient::try_connect_with(&home.topic(), &[page]).await.ok().unwrap();
        home.is_refused_at_the_topic(&mut topic, "auth-required").await;
    }
}

/// The name under which a relay is published is its own, also through a proxy that names nobody.
#[tokio::test(flavor = "multi_thread")]
async fn the_configured_url_is_a_name_of_the_relay() {
    let gateway = GatewayBuilder::new(GATEWAY, "named")
        .topics(&[])
        .set("relay", "url", r#""wss://relay.example.org""#)
        .table("[[private_topic]]\nname = \"diary\"")
        .start()
        .await;
    for (host, status) in [
        ("relay.example.org", 200),
        ("relay.example.org:443", 200),
        ("relay.example.org.evil.example", 404),
        ("evil.example", 404),
    ] {
        let got = http::request(&gateway.relay, "GET", "/topic/diary", &[("Host", host)]).await;
        assert_eq!(got.status, status, "{host}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_topic_is_there_for_its_own() {
    let home = Home::start().await;
    let (root_url, topic_url) = (home.gateway.url(), home.topic());
    // A program on this machine.
    let mut root = RawClient::connect(&root_url).await;
    let mut topic = RawClient::connect(&topic_url).await;
    home.sees_everything(&mut root, &mut topic).await;
    // A page that the operator trusts.
    let mut root = RawClient::connect_from_page(&root_url, FRIEND).await;
    let mut topic = RawClient::connect_from_page(&topic_url, FRIEND).await;
    home.sees_everything(&mut root, &mut topic).await;
    // A reader, whatever page it is on.
    let mut root = RawClient::connect_from_page(&root_url, EVIL).await;
    let mut topic = RawClient::connect_from_page(&topic_url, EVIL).await;
    for client in [&mut root, &mut topic] {
        client.authenticate(&home.reader, &root_url).await;
    }
    home.sees_everything(&mut root, &mut topic).await;
    // Even a local program reads no messages of others there.
    let dm = message(4, &Keys::generate(), &Keys::generate());
    topic.accept(&dm).await;
    let mut local = RawClient::connect(&topic_url).await;
    assert!(local.stored_ids(&[json!({"ids": [dm.id.to_hex()]})]).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_in_a_public_topic_too_is_for_all() {
    let home = Home::start().await;
    RawClient::connect(&home.gateway.topic_url("town")).await.accept(&home.secret).await;
    let mut page = RawClient::connect_from_page(&home.gateway.url(), EVIL).await;
    let ids = [json!({"ids": [home.secret.id.to_hex()]})];
    assert_eq!(page.stored_ids(&ids).await, [home.secret.id.to_hex()]);
    assert_eq!(page.count(&ids).await, 1);
}

/// Two private topics, and one that is public.
struct Two {
    gateway: Gateway,
    /// Reads both, the first, the second.
    readers: [Keys; 3],
}

impl Two {
    async fn start(name: &str) -> Self {
        let readers = [Keys::generate(), Keys::generate(), Keys::generate()];
        let [both, one, two] = readers.each_ref().map(|keys| keys.public_key().to_hex());
        let gateway = GatewayBuilder::new(GATEWAY, name)
            .topics(&["town"])
            .table(&format!(
                "[[private_topic]]\nname = \"family\"\nreaders = [{both:?}, {one:?}]\n\
                 [[private_topic]]\nname = \"friends\"\nreaders = [{both:?}, {two:?}]\n\
                 [[route]]\nfilter = {{ kinds = [30000] }}\ntopics = [\"family\", \"friends\"]"
            ))
            .start()
            .await;
        Self { gateway, readers }
    }

    async fn at(&self, topic: &str) -> RawClient {
        RawClient::connect(&self.gateway.topic_url(topic)).await
    }

    async fn at_root(&self) -> RawClient {
        RawClient::connect(&self.gateway.url()).await
    }

    /// Live on `/`: who reads both, the first, the second, and none.
    async fn watching(&self) -> [RawClient; 4] {
        let [both, one, two] = &self.readers;
        let mut clients = Vec::new();
        for keys in [Some(both), Some(one), Some(two), None] {
            let mut client = RawClient::connect_from_page(&self.gateway.url(), EVIL).await;
            if let Some(keys) = keys {
                client.authenticate(keys, &self.gateway.url()).await;
            }
            client.forget();
            client.req("live", &[json!({"limit": 0})]).await;
            clients.push(client);
        }
        clients.try_into().ok().unwrap()
    }
}

/// Checks that those of the clients, and no others, get the event, and nothing else.
async fn is_news_for(clients: &mut [RawClient; 4], expected: [bool; 4], event: &Event) {
    for (n, (client, expected)) in clients.iter_mut().zip(expected).enumerate() {
        if expected {
            assert_eq!(client.live("live").await["id"], event.id.to_hex(), "{n}");
        }
        client.expect_silence().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_becomes_public_is_news_for_those_who_did_not_see_it() {
    let two = Two::start("public").await;
    let mut clients = two.watching().await;
    let keys = Keys::generate();
    let passing = events::event(&keys, 20_001, "passing", &[], events::now());
    for event in [events::note(&keys, "a step at a time"), passing] {
        two.at("family").await.accept(&event).await;
        is_news_for(&mut clients, [true, true, false, false], &event).await;
        two.at("friends").await.accept(&event).await;
        is_news_for(&mut clients, [false, false, true, false], &event).await;
        two.at("town").await.accept(&event).await;
        is_news_for(&mut clients, [false, false, false, true], &event).await;
        two.at_root().await.accept(&event).await;
        is_news_for(&mut clients, [false; 4], &event).await;
    }
    // Published on `/`, and in no topic.
    let passing = events::event(&keys, 20_001, "passing too", &[], events::now());
    for event in [events::note(&keys, "for all"), passing] {
        two.at("family").await.accept(&event).await;
        is_news_for(&mut clients, [true, true, false, false], &event).await;
        two.at_root().await.accept(&event).await;
        is_news_for(&mut clients, [false, false, true, true], &event).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_in_two_private_topics_is_news_for_the_readers_of_each() {
    let two = Two::start("each").await;
    let mut clients = two.watching().await;
    let event = events::event(&Keys::generate(), 30_000, "both", &[&["d", "x"]], events::now());
    two.at_root().await.accept(&event).await;
    is_news_for(&mut clients, [true, true, true, false], &event).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_public_and_in_a_private_topic_too_stays_public() {
    let two = Two::start("stays").await;
    let keys = Keys::generate();
    let profile = |text: &str, ago| events::event(&keys, 0, text, &[], events::now() - ago);
    let first = profile("first", 20);
    two.at_root().await.accept(&first).await;
    two.at("family").await.accept(&first).await;
    let mut clients = two.watching().await;
    let second = profile("second", 10);
    two.at_root().await.accept(&second).await;
    is_news_for(&mut clients, [true; 4], &second).await;
    let [.., page] = &mut clients;
    assert_eq!(page.stored_ids(&[json!({"kinds": [0]})]).await, [second.id.to_hex()]);
    let mut family = two.at("family").await;
    assert_eq!(family.stored_ids(&[json!({"kinds": [0]})]).await, [second.id.to_hex()]);

    // One that was in a private topic alone stays there.
    let other = Keys::generate();
    let at = |text: &str, ago| events::event(&other, 0, text, &[], events::now() - ago);
    family.accept(&at("private", 20)).await;
    let newer = at("newer", 10);
    two.at_root().await.accept(&newer).await;
    let [.., page] = &mut clients;
    page.expect_silence().await;
    assert_eq!(page.stored_ids(&[json!({"kinds": [0]})]).await, [second.id.to_hex()]);
    assert_eq!(
        family.stored_ids(&[json!({"authors": [other.public_key().to_hex()]})]).await,
        [newer.id.to_hex()]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_version_for_a_private_topic_stays_there_though_the_old_one_was_public() {
    let two = Two::start("new-version").await;
    let keys = Keys::generate();
    let profile = |text: &str, ago| events::event(&keys, 0, text, &[], events::now() - ago);
    two.at("town").await.accept(&profile("public", 20)).await;
    let mut clients = two.watching().await;
    let private = profile("for the family", 10);
    two.at("family").await.accept(&private).await;
    is_news_for(&mut clients, [true, true, false, false], &private).await;
    let [.., page] = &mut clients;
    assert!(page.stored_ids(&[json!({"kinds": [0]})]).await.is_empty());
    assert!(two.at("town").await.stored_ids(&[json!({"kinds": [0]})]).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_guarded_kind_is_guarded_by_itself_and_never_found_by_its_words() {
    let gateway = GatewayBuilder::new(GATEWAY, "guarded").start().await;
    let (alice, bob, eve) = (Keys::generate(), Keys::generate(), Keys::generate());
    let mut at_bob = authenticated(&gateway, &bob).await;
    let mut at_eve = authenticated(&gateway, &eve).await;
    let mut nobody = RawClient::connect(&gateway.url()).await;
    // Kind 21059 is ephemeral: it is stored for nobody.
    for (kind, stored) in [(4, 1), (1_059, 1), (21_059, 0)] {
        nobody.accept(&message(kind, &alice, &bob)).await;
        let by_kind = json!({"kinds": [kind]});
        for (client, expected) in [(&mut at_bob, stored), (&mut at_eve, 0)] {
            let one = std::slice::from_ref(&by_kind);
            assert_eq!(client.stored_ids(one).await.len(), expected, "{kind}");
            assert_eq!(client.count(one).await as usize, expected, "{kind}");
            let found = client.negentropy(&by_kind, &[]).await.unwrap();
            assert_eq!(found.only_there.len(), expected, "{kind}");
        }
        for question in [by_kind, json!({"kinds": [kind], "search": "secret"})] {
            let one = std::slice::from_ref(&question);
            for reason in [
                nobody.refused_req("q", one).await,
                nobody.refused_count("q", one).await,
                nobody.negentropy(&question, &[]).await.unwrap_err(),
            ] {
                assert!(reason.starts_with("auth-required: "), "{question}: {reason}");
            }
        }
    }

    // What came before is in the index once this is found.
    let note = events::note(&alice, "no secret");
    nobody.accept(&note).await;
    let words = [json!({"search": "secret"})];
    nostr_gateway_tests::eventually(
        "the note's words",
        nostr_gateway_tests::PATIENCE,
        async || (!nobody.stored_ids(&words).await.is_empty()).then_some(()),
    )
    .await;
    let among_others = json!({"search": "secret", "kinds": [1, 4, 1_059, 21_059]});
    for question in [words[0].clone(), among_others] {
        for client in [&mut at_bob, &mut at_eve, &mut nobody] {
            let one = std::slice::from_ref(&question);
            assert_eq!(client.stored_ids(one).await, [note.id.to_hex()], "{question}");
            assert_eq!(client.count(one).await, 1, "{question}");
            let found = client.negentropy(&question, &[]).await.unwrap();
            assert_eq!(found.only_there, [note.id.to_hex()], "{question}");
        }
    }
}
