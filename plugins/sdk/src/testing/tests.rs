use super::*;
use crate::{Context, Verdict, kv, log, lookup, now};

/// Counts the notes of each author, and lets nobody in whom root does not follow.
struct Guard {
    root: String,
    seen: u32,
}

impl EventFilter for Guard {
    fn init() -> Result<Self, String> {
        log::info("ready");
        Ok(Self { root: crate::config::required("root")?, seen: 0 })
    }

    fn evaluate(&mut self, event: Event, context: Context) -> Verdict {
        self.seen += 1;
        assert_eq!(context.received_at, now());
        if !context.authenticated.contains(&event.pubkey)
            && lookup::follows(&self.root, &event.pubkey) != Ok(true)
        {
            return Verdict::ShadowReject;
        }
        match kv::increment(&format!("notes/{}", event.pubkey), 1, Some(60)) {
            Ok(1..=2) => Verdict::Accept,
            Ok(count) => Verdict::Reject(format!("that is note {count} of {}", self.seen)),
            Err(error) => Verdict::Reject(format!("{error:?}")),
        }
    }
}

fn follows(of: u8, whom: &[u8], created_at: u64) -> Event {
    let tags = whom.iter().map(|&key| vec!["p".to_owned(), author(key)]).collect();
    let id = format!("{created_at:064x}");
    Event { id, pubkey: author(of), kind: 3, tags, created_at, ..note("") }
}

fn by(key: u8) -> Event {
    Event { pubkey: author(key), ..note("hi") }
}

#[test]
fn a_plugin_has_all_that_the_host_offers() {
    let gateway = Gateway::new();
    assert_eq!(gateway.start::<Guard>().err().unwrap(), "config.root is missing");
    let gateway = gateway.with_config("root", author(9)).with_events([&follows(9, &[1], 10)]);
    let mut guard = gateway.start::<Guard>().unwrap();
    assert_eq!(gateway.log(), ["info: ready", "info: ready"]);

    assert_eq!(guard.evaluate(&by(1)), Verdict::Accept);
    assert_eq!(guard.evaluate(&by(2)), Verdict::ShadowReject);
    guard.context.authenticated = vec![author(2)];
    assert_eq!(guard.evaluate(&by(2)), Verdict::Accept);
    assert_eq!(guard.evaluate(&by(1)), Verdict::Accept);
    assert_eq!(guard.evaluate(&by(1)), Verdict::Reject("that is note 3 of 5".to_owned()));
    assert_eq!(gateway.remembered(&format!("notes/{}", author(1))), Some(b"3".to_vec()));

    // A new instance knows what is in kv, and nothing else. Another shares it.
    guard.restart().unwrap();
    assert_eq!(guard.evaluate(&by(1)), Verdict::Reject("that is note 4 of 1".to_owned()));
    let mut other = gateway.start::<Guard>().unwrap();
    assert_eq!(other.evaluate(&by(1)), Verdict::Reject("that is note 5 of 1".to_owned()));
    gateway.pass(60);
    assert_eq!(other.evaluate(&by(1)), Verdict::Accept);

    // A newer list counts, an older one does not.
    gateway.hold(&follows(9, &[2], 20));
    gateway.hold(&follows(9, &[1], 15));
    assert_eq!(other.evaluate(&by(1)), Verdict::ShadowReject);
    assert_eq!(other.evaluate(&by(2)), Verdict::Accept);
}

#[test]
fn two_gateways_on_one_thread_do_not_meet() {
    let (one, other) = (Gateway::new(), Gateway::new());
    one.run(|| {
        kv::set("a", b"1", None).unwrap();
        other.run(|| {
            assert_eq!(kv::get("a"), None);
            kv::set("a", b"2", Some(5)).unwrap();
        });
        assert_eq!(kv::get("a"), Some(b"1".to_vec()));
    });
    assert_eq!(other.remembered("a"), Some(b"2".to_vec()));
    assert_eq!(kv::get("a"), None, "nor does what runs in none of them");
}

#[test]
fn questions_are_answered_as_the_gateway_does() {
    let profile = Event { kind: 0, id: "aa".repeat(32), ..by(1) };
    let notes: Vec<_> =
        (0..5).map(|n| Event { id: format!("{n:064}"), created_at: n, ..by(1) }).collect();
    let gateway = Gateway::new().with_events(&notes).with_events([&profile, &profile]);
    gateway.run(|| {
        let held = lookup::author(&author(1)).unwrap();
        assert_eq!((held.events, held.has_profile, held.has_follows), (6, true, false));
        let count = |kinds: &[u16], since, most| {
            let query = lookup::Query { authors: vec![author(1)], kinds: kinds.to_vec(), since };
            lookup::count(&query, most)
        };
        assert_eq!(count(&[], None, 100), Ok(6));
        assert_eq!(count(&[1], Some(3), 100), Ok(2));
        assert_eq!(count(&[1], None, 3), Ok(3));
        assert_eq!(lookup::author("Me").unwrap_err(), lookup::Error::Invalid);
        assert_eq!(lookup::list_follows(&author(1), 9), Ok(Vec::new()));
        assert_eq!(lookup::list_tags(&author(1), 1, 9), Err(lookup::Error::Invalid));
        assert_eq!(lookup::list_tags(&author(1), 10_000, 9), Ok(Vec::new()));
    });
}

#[test]
fn a_manifest_gives_configuration_and_bounds() {
    let dir = std::env::temp_dir().join(format!("nostr-gateway-plugin-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let manifest = dir.join("plugin.toml");
    std::fs::write(
        &manifest,
        "id = \"x\"\ncapabilities = [\"log\", \"config\", \"kv\"]\n[limits]\nkv_keys = 1\n\
         [config]\nmax = 3\nsince = 2026-01-02\nrules = [{ kinds = [1] }]\n",
    )
    .unwrap();
    let gateway = Gateway::of(&manifest);
    gateway.run(|| {
        assert_eq!(crate::config::required("max"), Ok(3));
        assert_eq!(crate::config::required("since"), Ok("2026-01-02".to_owned()));
        let rules: Vec<std::collections::BTreeMap<String, Vec<u16>>> =
            crate::config::required("rules").unwrap();
        assert_eq!(rules[0]["kinds"], [1]);
        kv::set("a", b"", None).unwrap();
        assert_eq!(kv::set("b", b"", None), Err(kv::Error::Quota));
        assert_eq!(kv::set("", b"", None), Err(kv::Error::Size));
        assert_eq!(kv::increment("a", 1, None), Err(kv::Error::NotACounter));
    });
    let asked = std::panic::catch_unwind(|| Gateway::of(&manifest).run(now));
    let why = *asked.unwrap_err().downcast::<String>().unwrap();
    assert_eq!(why, "the manifest does not list the capability \"clock\"");

    let events = dir.join("events.jsonl");
    std::fs::write(
        &events,
        "{\"kind\": 1, \"content\": \"a\"}\n\n{\"event\": {\"created_at\": 7}, \"origin\": \
         \"gossip\", \"from\": \"cats\", \"topics\": [\"cats\"]}\n",
    )
    .unwrap();
    let read = lines(&events);
    assert_eq!(read.iter().map(|line| line.number).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(read[1].context.origin.detail, "cats");
    assert_eq!(read[1].context.address, None);
    assert_eq!(read[0].context.address.as_deref(), Some("127.0.0.1"));
    assert_eq!((read[1].context.received_at, read[1].event.created_at), (7, 7));
    assert_ne!(read[0].event.id, read[1].event.id);
    std::fs::write(&events, "{\"kind\": 1}\n{\"kind\": true}\n").unwrap();
    let why = std::panic::catch_unwind(|| lines(&events)).unwrap_err();
    let why = *why.downcast::<String>().unwrap();
    assert!(why.contains("events.jsonl:2: "), "{why}");
    std::fs::remove_dir_all(&dir).unwrap();
}
