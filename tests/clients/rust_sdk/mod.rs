//! nostr-sdk for Rust: what its client does with the gateway.

mod inbox;
mod parties;

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nostr_gateway_tests::PATIENCE;
use nostr_relay_builder::prelude::{MemoryDatabase, MemoryDatabaseOptions};
use nostr_sdk::prelude::*;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines, Stdin},
    time::{sleep, timeout},
};

use inbox::{Got, Inbox};
use parties::{Parties, by, event, wrap_for};

/// How long is waited for what must not come.
const SILENCE: Duration = Duration::from_millis(500);

/// Runs all checks against the gateway at this URL.
pub async fn run(url: &str) {
    let mut sdk = Sdk { url, input: BufReader::new(tokio::io::stdin()).lines() };
    let parties = Parties::new();
    report("publish", sdk.publish().await);
    report("forged", sdk.forged().await);
    report("subscribe", sdk.subscribe().await);
    report("topic", sdk.topic().await);
    report("restart", sdk.comes_back_after("restart").await);
    report("crash", sdk.comes_back_after("crash").await);
    report("auth", sdk.auth(&parties).await);
    report("auth live", sdk.auth_live(&parties).await);
    report("stranger", sdk.stranger(&parties).await);
    report("count", sdk.count().await);
    report("count guarded", sdk.count_guarded(&parties).await);
    report("search", sdk.search().await);
    report("negentropy", sdk.negentropy().await);
    report("negentropy guarded", sdk.negentropy_guarded(&parties).await);
}

fn report(check: &str, result: Result<()>) {
    match result {
        Ok(()) => println!("ok {check}"),
        Err(error) => println!("not ok {check}: {}", format!("{error:#}").replace('\n', " ")),
    }
}

struct Sdk<'a> {
    url: &'a str,
    /// The runner's answers.
    input: Lines<BufReader<Stdin>>,
}

impl Sdk<'_> {
    /// A connected client that authenticates with these keys when it is asked to, and stores events.
    async fn client(&self, keys: Option<&Keys>) -> Result<(Client, Relay)> {
        self.client_at(self.url, keys).await
    }

    async fn client_at(&self, url: &str, keys: Option<&Keys>) -> Result<(Client, Relay)> {
        let database =
            MemoryDatabase::with_opts(MemoryDatabaseOptions { events: true, max_events: None });
        let mut builder = Client::builder().database(database);
        if let Some(keys) = keys {
            builder = builder.signer(keys.clone());
        }
        let client = builder.build();
        // The library's own interval is ten seconds. It opens a subscription again only if that is of
        // an earlier second than the new connection.
        let options = RelayOptions::new()
            .retry_interval(Duration::from_millis(1_500))
            .adjust_retry_interval(false);
        client.pool().add_relay(url, options).await?;
        let connected = client.try_connect(PATIENCE).await;
        ensure!(connected.failed.is_empty(), "cannot connect: {:?}", connected.failed);
        let relay = client.relay(url).await?;
        Ok((client, relay))
    }

    /// The URL of a topic that the gateway is in.
    fn topic_url(&self) -> String {
        format!("{}topic/one%20two", self.url)
    }

    /// Publishes over a connection of its own, as nobody.
    async fn send(&self, events: &[&Event]) -> Result<()> {
        let (client, relay) = self.client(None).await?;
        for event in events {
            relay.send_event(event).await?;
        }
        client.shutdown().await;
        Ok(())
    }

    async fn publish(&mut self) -> Result<()> {
        let (client, relay) = self.client(None).await?;
        let note = event(&Keys::generate(), 1, "Grüße 👋🏽 \u{7} \"q\" \\", &[&["t", "a"]], 0);
        let output = client.send_event(&note).await?;
        ensure!(output.success.len() == 1, "refused: {:?}", output.failed);
        let found = fetch(&relay, Filter::new().id(note.id)).await?;
        ensure!(found == vec![note.clone()], "{found:?} is stored");
        relay.send_event(&note).await.context("a duplicate")?;
        client.shutdown().await;
        Ok(())
    }

    async fn forged(&mut self) -> Result<()> {
        let (client, relay) = self.client(None).await?;
        let note = event(&Keys::generate(), 1, "forged", &[], 0);
        let mut forged = note.clone();
        forged.sig = event(&Keys::generate(), 1, "another", &[], 0).sig;
        match relay.send_event(&forged).await {
            Ok(_) => bail!("it was accepted"),
            Err(error) => ensure!(error.to_string().contains("invalid: "), "{error}"),
        }
        ensure!(fetch(&relay, Filter::new().id(note.id)).await?.is_empty(), "it was stored");
        relay.send_event(&note).await.context("the real one")?;
        client.shutdown().await;
        Ok(())
    }

    async fn subscribe(&mut self) -> Result<()> {
        let keys = Keys::generate();
        let (old, older) = (event(&keys, 1, "old", &[], 100), event(&keys, 1, "older", &[], 200));
        self.send(&[&older, &old]).await?;
        let (client, _) = self.client(None).await?;
        let mut inbox = Inbox::of(&client);
        client.subscribe(by(&keys), None).await?;
        inbox.until(|got| *got == Got::Eose).await?;
        let stored = [Got::Event(old.id), Got::Event(older.id), Got::Eose];
        ensure!(inbox.all == stored, "{:?}", inbox.all);
        let live = event(&keys, 1, "live", &[], 0);
        let others = event(&Keys::generate(), 1, "somebody else's", &[], 0);
        self.send(&[&others, &event(&keys, 7, "+", &[], 0), &live]).await?;
        inbox.event(&live).await?;
        inbox.silence().await;
        ensure!(inbox.all.len() == 4, "{:?}", inbox.all);
        client.shutdown().await;
        Ok(())
    }

    async fn topic(&mut self) -> Result<()> {
        let keys = Keys::generate();
        let (inside, outside) =
            (event(&keys, 1, "inside", &[], 0), event(&keys, 1, "outside", &[], 0));
        let (everything, root) = self.client(None).await?;
        let (topic, relay) = self.client_at(&self.topic_url(), None).await?;
        relay.send_event(&inside).await?;
        root.send_event(&outside).await?;
        let found = fetch(&relay, by(&keys)).await?;
        ensure!(found == vec![inside], "{found:?} is in the topic");
        ensure!(fetch(&root, by(&keys)).await?.len() == 2, "not all is in the root");
        topic.shutdown().await;
        everything.shutdown().await;
        Ok(())
    }

    async fn comes_back_after(&mut self, how: &str) -> Result<()> {
        let keys = Keys::generate();
        let before = event(&keys, 1, "before", &[], 100);
        self.send(&[&before]).await?;
        let (client, relay) = self.client(None).await?;
        let mut inbox = Inbox::of(&client);
        client.subscribe(by(&keys), None).await?;
        inbox.event(&before).await?;
        println!("{how}");
        let answer = self.input.next_line().await?;
        ensure!(answer.as_deref() == Some("restarted"), "the runner said {answer:?}");
        // The subscription is opened again by the library.
        let meanwhile = event(&keys, 1, "meanwhile", &[], 50);
        self.send(&[&meanwhile]).await?;
        inbox.event(&meanwhile).await?;
        let live = event(&keys, 1, "live", &[], 0);
        self.send(&[&live]).await?;
        inbox.event(&live).await?;
        // What was acknowledged before is still there.
        let found = fetch(&relay, Filter::new().id(before.id)).await?;
        ensure!(found == vec![before], "{found:?} is stored");
        client.shutdown().await;
        Ok(())
    }

    async fn auth(&mut self, parties: &Parties) -> Result<()> {
        self.send(&[&parties.wrap, &parties.direct]).await?;
        let (nobody, relay) = self.client(None).await?;
        nobody.automatic_authentication(false);
        match fetch(&relay, parties.wrapped()).await {
            Ok(events) => bail!("nobody is given {events:?}"),
            Err(error) => ensure!(error.to_string().contains("auth-required: "), "{error}"),
        }
        nobody.shutdown().await;
        // The library authenticates and asks again by itself.
        let (client, relay) = self.client(Some(&parties.me)).await?;
        let found = fetch(&relay, parties.wrapped()).await?;
        ensure!(found == vec![parties.wrap.clone()], "{found:?}");
        let found = fetch(&relay, Filter::new().id(parties.direct.id)).await?;
        ensure!(found == vec![parties.direct.clone()], "{found:?}");
        client.shutdown().await;
        // With the URL of a topic in the `relay` tag.
        let (client, relay) = self.client_at(&self.topic_url(), Some(&parties.me)).await?;
        let found = fetch(&relay, parties.wrapped()).await.context("at the topic")?;
        ensure!(found.is_empty(), "{found:?} is in a public topic");
        client.shutdown().await;
        // Its author is a party as well.
        let (client, relay) = self.client(Some(&parties.from)).await?;
        let sent =
            Filter::new().kind(Kind::EncryptedDirectMessage).author(parties.from.public_key());
        let found = fetch(&relay, sent).await?;
        ensure!(found == vec![parties.direct.clone()], "{found:?}");
        client.shutdown().await;
        Ok(())
    }

    async fn auth_live(&mut self, parties: &Parties) -> Result<()> {
        let (client, _) = self.client(Some(&parties.me)).await?;
        let mut inbox = Inbox::of(&client);
        // The library notes a subscription after it has sent it: one that is refused at once may not be
        // opened again, and the application has to.
        for _ in 0..2 {
            client.subscribe(parties.wrapped(), None).await?;
            let stored = Got::Event(parties.wrap.id);
            if timeout(Duration::from_secs(3), inbox.until(|got| *got == stored)).await.is_ok() {
                break;
            }
        }
        inbox.event(&parties.wrap).await?;
        let live = wrap_for(&parties.me, "live");
        self.send(&[&wrap_for(&Keys::generate(), "not mine"), &live]).await?;
        inbox.event(&live).await?;
        let mine = [Got::Event(parties.wrap.id), Got::Event(live.id)];
        let not_mine =
            inbox.all.iter().find(|got| matches!(got, Got::Event(_)) && !mine.contains(got));
        ensure!(not_mine.is_none(), "{not_mine:?}");
        client.shutdown().await;
        Ok(())
    }

    async fn stranger(&mut self, parties: &Parties) -> Result<()> {
        let stranger = Keys::generate();
        let to_stranger = wrap_for(&stranger, "to the stranger");
        self.send(&[&to_stranger]).await?;
        for keys in [None, Some(&stranger)] {
            let (client, relay) = self.client(keys).await?;
            client.automatic_authentication(keys.is_some());
            if keys.is_some() {
                let own = Filter::new().kind(Kind::GiftWrap).pubkey(stranger.public_key());
                let found = fetch(&relay, own).await?;
                ensure!(found == vec![to_stranger.clone()], "{found:?}");
            }
            let mut inbox = Inbox::of(&client);
            let ids = Filter::new().ids([parties.wrap.id, parties.direct.id]);
            let direct = Filter::new().kind(Kind::EncryptedDirectMessage);
            for filter in [parties.wrapped(), ids, direct, Filter::new().limit(100)] {
                client.subscribe(filter, None).await?;
            }
            inbox.silence().await;
            let live = wrap_for(&parties.me, "live");
            let seen = event(&Keys::generate(), 1, "for all", &[], 0);
            self.send(&[&live, &seen]).await?;
            inbox.event(&seen).await?;
            inbox.silence().await;
            for secret in [&parties.wrap, &parties.direct, &live] {
                let got = Got::Event(secret.id);
                ensure!(!inbox.all.contains(&got), "a stranger is given {secret:?}");
            }
            client.shutdown().await;
        }
        Ok(())
    }

    async fn count(&mut self) -> Result<()> {
        let keys = Keys::generate();
        for (content, tag) in [("a", "0"), ("b", "1"), ("c", "1")] {
            self.send(&[&event(&keys, 1, content, &[&["t", tag]], 0)]).await?;
        }
        let (client, relay) = self.client(None).await?;
        for (filter, expected) in
            [(by(&keys), 3), (by(&keys).hashtag("1"), 2), (by(&keys).hashtag("2"), 0)]
        {
            let count = counted(&relay, &filter).await?;
            ensure!(count == expected, "{filter:?} has {count}");
        }
        client.shutdown().await;
        Ok(())
    }

    async fn count_guarded(&mut self, parties: &Parties) -> Result<()> {
        let (client, relay) = self.client(None).await?;
        // The library does not listen for CLOSED here, so a refusal is a timeout; and see `counted`.
        for _ in 0..3 {
            let count = relay.count_events(parties.wrapped(), SILENCE).await;
            ensure!(matches!(count, Ok(0) | Err(_)), "nobody is told of {count:?}");
        }
        client.shutdown().await;
        let (client, relay) = self.client(Some(&parties.me)).await?;
        let held = fetch(&relay, parties.wrapped()).await?.len();
        let count = counted(&relay, &parties.wrapped()).await?;
        ensure!(count == held && count > 0, "{count} of {held}");
        client.shutdown().await;
        Ok(())
    }

    async fn search(&mut self) -> Result<()> {
        let keys = Keys::generate();
        let found = event(&keys, 1, "A purple ostrich sings at midnight", &[], 0);
        let other = event(&keys, 1, "A green heron sleeps", &[], 0);
        self.send(&[&found, &other]).await?;
        let (client, relay) = self.client(None).await?;
        // The index may be a moment behind.
        for _ in 0..50 {
            if !fetch(&relay, by(&keys).search("ostrich")).await?.is_empty() {
                break;
            }
            sleep(Duration::from_millis(100)).await;
        }
        // NIP-50: extensions that are not supported are ignored.
        for (text, expected) in [
            ("purple ostrich", vec![found.clone()]),
            ("ostrich language:en", vec![found]),
            ("walrus", vec![]),
        ] {
            let events = fetch(&relay, by(&keys).search(text)).await?;
            ensure!(events == expected, "{text:?} finds {} events", events.len());
        }
        client.shutdown().await;
        Ok(())
    }

    async fn negentropy(&mut self) -> Result<()> {
        let keys = Keys::generate();
        let notes = |count: u64, what: &str| -> Vec<Event> {
            (0..count).map(|n| event(&keys, 1, &format!("{what} {n}"), &[], n * 7)).collect()
        };
        let (both, theirs, ours) = (notes(150, "both"), notes(40, "theirs"), notes(130, "ours"));
        self.send(&both.iter().chain(&theirs).collect::<Vec<_>>()).await?;
        let (client, relay) = self.client(None).await?;
        for event in both.iter().chain(&ours) {
            client.database().save_event(event).await?;
        }
        let options = SyncOptions::new().direction(SyncDirection::Both);
        let output = client.sync(by(&keys), &options).await?;
        ensure!(output.failed.is_empty(), "{:?}", output.failed);
        ensure!(output.send_failures.is_empty(), "{:?}", output.send_failures);
        let received = sorted(output.received.iter().copied());
        ensure!(received == sorted(theirs.iter().map(|e| e.id)), "{} received", received.len());
        let sent = sorted(output.sent.iter().copied());
        ensure!(sent == sorted(ours.iter().map(|e| e.id)), "{} sent", sent.len());
        let all = fetch(&relay, by(&keys).limit(500)).await?;
        ensure!(all.len() == 320, "the relay has {}", all.len());
        let again = client.sync(by(&keys), &options).await?;
        ensure!(again.local.is_empty() && again.remote.is_empty(), "{again:?}");
        client.shutdown().await;
        Ok(())
    }

    async fn negentropy_guarded(&mut self, parties: &Parties) -> Result<()> {
        let (client, relay) = self.client(None).await?;
        client.automatic_authentication(false);
        let dry = SyncOptions::new().dry_run();
        match relay.sync(parties.wrapped(), &dry).await {
            Ok(output) => ensure!(output.remote.is_empty(), "nobody is told {:?}", output.remote),
            Err(error) => ensure!(error.to_string().contains("auth-required: "), "{error}"),
        }
        // A filter without kinds reveals nothing either.
        let to_me = Filter::new().pubkey(parties.me.public_key());
        let output = relay.sync(to_me, &dry).await?;
        ensure!(output.remote.is_empty(), "nobody is told {:?}", output.remote);
        client.shutdown().await;
        // The library does not authenticate for a sync that is refused: it has to be before.
        let (client, relay) = self.client(Some(&parties.me)).await?;
        let held = fetch(&relay, parties.wrapped()).await?;
        client.database().wipe().await?;
        let output = relay.sync(parties.wrapped(), &dry).await?;
        let expected = sorted(held.iter().map(|event| event.id));
        ensure!(sorted(output.remote.iter().copied()) == expected, "{:?}", output.remote);
        client.shutdown().await;
        Ok(())
    }
}

/// What is stored for a filter, in the order of NIP-01.
async fn fetch(relay: &Relay, filter: Filter) -> Result<Vec<Event>> {
    let events = relay.fetch_events(filter, PATIENCE, ReqExitPolicy::ExitOnEOSE).await?;
    Ok(events.to_vec())
}

async fn counted(relay: &Relay, filter: &Filter) -> Result<usize> {
    // The library begins to listen after it has sent: it may miss an answer that comes at once.
    for _ in 0..5 {
        if let Ok(count) = relay.count_events(filter.clone(), Duration::from_secs(1)).await {
            return Ok(count);
        }
    }
    bail!("no answer to COUNT {filter:?}")
}

fn sorted(ids: impl Iterator<Item = EventId>) -> Vec<EventId> {
    let mut ids: Vec<EventId> = ids.collect();
    ids.sort();
    ids
}
