use std::ffi::OsString;

use super::*;
use crate::protocol::TopicName;

/// A user with a home directory and this file in it.
struct User {
    home: tempfile::TempDir,
    sources: Sources,
}

impl User {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let sources = Sources {
            standard_file: Some(home.path().join("config.toml")),
            standard_data_dir: Some(home.path().join("data")),
            ..Sources::default()
        };
        Self { home, sources }
    }

    fn with_file(text: &str) -> Self {
        let user = Self::new();
        std::fs::write(user.home.path().join("config.toml"), text).unwrap();
        user
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.sources.environment.push((OsString::from(name), OsString::from(value)));
        self
    }

    fn flags(mut self, change: impl FnOnce(&mut Flags)) -> Self {
        change(&mut self.sources.flags);
        self
    }

    fn load(&self) -> Loaded {
        load(&self.sources).unwrap_or_else(|errors| panic!("{errors}"))
    }

    /// The errors, with paths relative to the home directory.
    fn errors(&self) -> String {
        self.relative(&load(&self.sources).unwrap_err().to_string())
    }

    fn relative(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.home.path().display()), "")
    }
}

fn names(list: &[TopicName]) -> Vec<&str> {
    list.iter().map(TopicName::as_str).collect()
}

#[track_caller]
fn refused(file: &str, expected: &str) {
    assert_eq!(User::with_file(file).errors(), expected);
}

#[test]
fn the_annotated_default_is_the_default() {
    let config: Config = toml_value(DEFAULT_TOML).deserialize().unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(config.validate(), []);
    assert_eq!(config.warnings(), [""; 0]);
    assert_eq!(User::new().load().config, Config::default());
    // Every key stands there, and not only those that differ.
    for section in keys::SECTIONS.iter().filter(|section| !section.list) {
        for key in section.keys {
            let path = format!("{}.{}", section.name, key.name);
            assert!(toml_value(DEFAULT_TOML).find(&path).is_some(), "{path}");
        }
    }
}

#[test]
fn the_examples_in_the_annotated_default_are_valid() {
    let text: Vec<&str> =
        DEFAULT_TOML.lines().map(|line| line.strip_prefix("#: ").unwrap_or(line)).collect();
    let config = User::with_file(&text.join("\n")).load().config;
    assert_eq!((config.route.len(), config.upstream.len()), (1, 3));
    assert_eq!(config.retention.len(), 2);
    assert_eq!(config.retention[0].kinds, [1, 6, 7]);
    assert_eq!(config.upstream[0].filter.kinds, Some(vec![0, 1, 3]));
    assert_eq!(config.route[0].filter.tags.len(), 1);
}

fn toml_value(text: &str) -> figment::value::Value {
    use figment::providers::{Format, Toml};
    Toml::from_str::<figment::value::Dict>(text).unwrap().into()
}

#[test]
fn later_layers_go_over_earlier_ones() {
    let user = User::with_file(
        "[relay]\nlisten = \"127.0.0.1:1\"\nname = \"file\"\nmax_filters = 7\n\
         [discovery]\nmdns = false\n",
    )
    .variable("NOSTR_GATEWAY_RELAY__LISTEN", "127.0.0.1:2")
    .variable("NOSTR_GATEWAY_RELAY__NAME", "12")
    .variable("NOSTR_GATEWAY_DISCOVERY__RETRIES", "9")
    .variable("NOSTR_GATEWAY_TOPICS__JOIN", r#"["global", "a"]"#)
    .variable("NOSTR_GATEWAY_ENDPOINT__IROH_RELAYS", "disabled")
    .variable("NOSTR_GATEWAY_UPSTREAM", r#"[{ name = "x", urls = ["wss://x"] }]"#)
    .variable("PATH", "/bin")
    .flags(|flags| flags.listen = Some("127.0.0.1:3".to_owned()));
    let loaded = user.load();
    assert_eq!(loaded.config.relay.listen.port(), 3);
    assert_eq!(loaded.config.relay.name, "12");
    assert_eq!(loaded.config.relay.max_filters, 7);
    assert_eq!(loaded.config.discovery.retries, 9);
    assert!(!loaded.config.discovery.mdns);
    assert_eq!(loaded.config.endpoint.iroh_relays, crate::gossip::config::IrohRelays::Disabled);
    assert_eq!(names(&loaded.config.topics.join), ["global", "a"]);
    assert_eq!(names(&loaded.config.topics.default), ["global"]);
    assert_eq!(loaded.config.upstream[0].name, "x");
    let by = |key: &str| user.relative(&loaded.provenance.of(key).to_string());
    assert_eq!(by("relay.listen"), "flag --listen");
    assert_eq!(by("relay.name"), "environment NOSTR_GATEWAY_RELAY__NAME");
    assert_eq!(by("relay.max_filters"), "config.toml:4");
    assert_eq!(by("relay.max_limit"), "default");
}

#[test]
fn the_topic_flag_replaces_the_topics_and_takes_the_default_with_it() {
    let flags = |flags: &mut Flags| flags.topics = vec!["cats".to_owned(), "dogs".to_owned()];
    let topics = User::new().flags(flags).load().config.topics;
    assert_eq!(names(&topics.join), ["cats", "dogs"]);
    assert_eq!(names(&topics.default), ["cats", "dogs"]);

    // A default that was set and is still joined stays, and so does the built-in one.
    let file = "[topics]\njoin = [\"x\"]\ndefault = [\"dogs\"]\n";
    assert_eq!(names(&User::with_file(file).flags(flags).load().config.topics.default), ["dogs"]);
    let with_global = |flags: &mut Flags| flags.topics = vec!["cats".into(), "global".into()];
    assert_eq!(names(&User::new().flags(with_global).load().config.topics.default), ["global"]);

    // One that was set and is no longer joined is a mistake.
    let file = "[topics]\njoin = [\"x\"]\ndefault = [\"x\"]\n";
    assert_eq!(
        User::with_file(file).flags(flags).errors(),
        "config.toml:3: topics.default[0]: \"x\" is not in topics.join"
    );

    // The same without flags.
    let file = "[topics]\njoin = [\"x\"]\n";
    assert_eq!(names(&User::with_file(file).load().config.topics.default), ["x"]);
}

#[test]
fn the_upstream_flag_adds_streams() {
    let file = "[[upstream]]\nname = \"relay.example.org\"\nurls = [\"wss://relay.example.org\"]\n";
    let user = User::with_file(file).flags(|flags| {
        flags.topics = vec!["cats".to_owned()];
        flags.upstreams = [
            "wss://Relay.example.org/x",
            "ws://127.0.0.1:7777",
            "ws://[::1]:7",
            "wss://bücher.example",
        ]
        .map(str::to_owned)
        .to_vec();
    });
    let upstream = user.load().config.upstream;
    let streams: Vec<&str> = upstream.iter().map(|stream| stream.name.as_str()).collect();
    let expected =
        ["relay.example.org", "relay.example.org-2", "127.0.0.1", "1", "xn--bcher-kva.example"];
    assert_eq!(streams, expected);
    assert_eq!(upstream[1].urls, ["wss://Relay.example.org/x"]);
    assert_eq!(names(&upstream[1].topics), ["cats"]);
}

#[test]
fn places_come_from_flags_variables_or_the_user() {
    let mut user = User::new();
    assert_eq!(user.load().data_dir, user.home.path().join("data"));
    assert_eq!(user.load().file, None);
    user = user.variable("NOSTR_GATEWAY_DATA_DIR", "/a").variable("NOSTR_GATEWAY_CONFIG", "");
    assert_eq!(user.load().data_dir, PathBuf::from("/a"));
    user.sources.data_dir = Some("/b".into());
    assert_eq!(user.load().data_dir, PathBuf::from("/b"));

    let mut nobody = User::new();
    nobody.sources.standard_data_dir = None;
    nobody.sources.standard_file = None;
    assert_eq!(
        nobody.errors(),
        "--data-dir: this user has no home directory, so there is no default data directory; give one"
    );
    let mut user = User::new();
    user.sources.file = Some(user.home.path().join("other.toml"));
    assert_eq!(
        user.errors(),
        "other.toml: cannot read the configuration file: No such file or directory (os error 2)"
    );
}

#[test]
fn what_is_shown_reads_back_as_the_same() {
    let user = User::with_file(
        "[relay]\nname = \"a \\\"quoted\\\" # name\\nwith\\ttab \\u007f\"\n[topics]\njoin = [\"ä\", \"b\"]\n\
         [[route]]\nfilter = { kinds = [1], \"#t\" = [\"x\"], since = 5 }\ntopics = [\"b\"]\n\
         [[upstream]]\nname = \"u\"\nurls = [\"wss://u\"]\n",
    )
    .flags(|flags| {
        flags.upstreams = vec!["wss://relay.example.org".to_owned()];
        flags.admin = Some("127.0.0.1:0".to_owned());
    });
    let loaded = user.load();
    let shown = show(&loaded);
    let again = User::with_file(&shown).load();
    assert_eq!(again.config, loaded.config, "{shown}");
    // The comments stand one below the other, save behind the one long line.
    let before = |line: &str| line.rfind("  # ").map(|end| line[..end].chars().count());
    let lines = shown.lines().filter(|line| !line.starts_with("description"));
    let columns: std::collections::BTreeSet<usize> = lines.filter_map(before).collect();
    assert_eq!(columns.len(), 1, "{shown}");
    let lines = user.relative(&shown);
    let lines = lines.lines().map(|line| match line.rsplit_once("  # ") {
        Some((value, set_by)) => format!("{}  # {set_by}", value.trim_end()),
        None => line.to_owned(),
    });
    let shown: Vec<String> = lines.collect();
    for line in [
        "# file: config.toml",
        "# data directory: data (default)",
        "listen = \"127.0.0.1:0\"  # flag --admin",
        "max_filters = 50  # default",
        "topics = [\"b\"]  # config.toml:7",
        "name = \"relay.example.org\"  # flag --upstream",
        "default = [\"ä\", \"b\"]  # follows topics.join",
        "direction = \"down\"  # default",
    ] {
        assert!(shown.iter().any(|shown| shown == line), "{line}: {shown:#?}");
    }
}

#[test]
fn unknown_names_are_refused_with_the_allowed_ones() {
    refused(
        "[relay]\n\nlistn = \"x\"\n",
        "config.toml:3: relay.listn: unknown key; did you mean listen?",
    );
    refused(
        "[topics]\nfavourites = []\n",
        "config.toml:2: topics.favourites: unknown key; allowed: join, default, join_on_visit, visit_idle_s",
    );
    refused("[relays]\n", "config.toml:1: relays: unknown section; did you mean relay?");
    refused(
        "[database]\nx = 1\n",
        "config.toml:1: database: unknown section; allowed: relay, access, rates, admin, endpoint, \
         discovery, sync, limits, topics, plugins, secrets, storage, retention, route, private_topic, \
          upstream",
    );
    refused("max_filters = 3\n", "config.toml:1: max_filters: this key belongs under [relay]");
    refused(
        "[upstream]\nname = \"x\"\n",
        "config.toml:1: upstream: a table stands here; write [[upstream]]",
    );
    refused("relay = 3\n", "config.toml:1: relay: 3 stands here; write [relay]");
}

#[test]
fn wrong_values_are_refused_with_what_is_allowed() {
    refused(
        "[relay]\nlisten = \"localhost\"\n",
        "config.toml:2: relay.listen: \"localhost\" is not an address with a port; write it like \
         127.0.0.1:4869",
    );
    refused(
        "[relay]\nlisten = 4869\n",
        "config.toml:2: relay.listen: 4869 is not a text in quotation marks",
    );
    refused(
        "[relay]\nidle_timeout_s = 5\nmax_filters = 1.5\nmax_limit = -1\nmax_connections = \"9\"\n",
        "config.toml:2: relay.idle_timeout_s: 5 is not a whole number from 10 to 3600\n\
         config.toml:3: relay.max_filters: 1.5 is not a whole number from 1 to 1000\n\
         config.toml:4: relay.max_limit: -1 is not a whole number from 1 to 1000000\n\
         config.toml:5: relay.max_connections: \"9\" is not a whole number from 1 to 100000",
    );
    refused(
        "[discovery]\nmdns = \"yes\"\n",
        "config.toml:2: discovery.mdns: \"yes\" is not true or false",
    );
    refused(
        "[discovery]\npeers = \"x\"\n",
        "config.toml:2: discovery.peers: \"x\" is not a list of texts, like [\"one\", \"two\"]",
    );
    refused(
        "[discovery]\npeers = [\n  \"x\",\n]\nmdns_service = \"A\"\ndht_bootstrap = [\"x\"]\n",
        "config.toml:3: discovery.peers[0]: \"x\" does not begin with an endpoint id: 64 lowercase \
         hex digits, optionally followed by @IP:PORT\n\
         config.toml:5: discovery.mdns_service: \"A\" is not a service name: 1 to 62 of the \
         characters a-z, 0-9 and \"-\"\n\
         config.toml:6: discovery.dht_bootstrap[0]: \"x\" is not a host with a port; write it like \
         router.example.org:6881",
    );
    refused(
        "[endpoint]\niroh_relays = \"none\"\npkarr_relay = \"x\"\nexternal_addresses = [\"192.0.2.1:0\"]\n",
        "config.toml:2: endpoint.iroh_relays: \"none\" is not an http:// or https:// URL; or one of \
         the words \"default\" and \"disabled\"\n\
         config.toml:3: endpoint.pkarr_relay: \"x\" is not an http:// or https:// URL; leave it \
         empty (\"\") for none\n\
         config.toml:4: endpoint.external_addresses[0]: \"192.0.2.1:0\" has port 0, at which nobody \
         can be reached",
    );
    refused(
        "[storage]\ndurability = \"fast\"\n",
        "config.toml:2: storage.durability: \"fast\" is not one of: \"full\", \"normal\"",
    );
    refused(
        "[topics]\njoin = [\"global\", \"\", 3]\n",
        "config.toml:2: topics.join[1]: \"\": a topic name must not be empty\n\
         config.toml:2: topics.join[2]: 3 is not a text in quotation marks",
    );
    refused(
        "[[route]]\nfilter = { kindz = [1] }\ntopics = [\"global\"]\n",
        "config.toml:2: route[0].filter: not a NIP-01 filter: filter contains unknown element \"kindz\"",
    );
}

#[test]
fn values_that_contradict_one_another_are_refused() {
    refused(
        "[relay]\nlisten = \"0.0.0.0:4870\"\n[access]\nread = \"open\"\nwrite = \"open\"\n",
        "config.toml:2: admin.listen: 127.0.0.1:4870 is taken by relay.listen (0.0.0.0:4870); use \
         another port",
    );
    refused(
        "[limits]\nmax_event_bytes = 2000000\n[relay]\ndefault_limit = 9\nmax_limit = 8\n",
        "config.toml:2: relay.max_message_bytes: 1048576 is less than limits.max_event_bytes \
         (2000000), so the largest events could not be sent\n\
         config.toml:4: relay.default_limit: 9 is more than relay.max_limit (8)",
    );
    refused(
        "[topics]\njoin = [\"a\", \"a\"]\n[[route]]\nfilter = {}\ntopics = [\"b\"]\n\
         [[route]]\nfilter = {}\ntopics = []\n",
        "config.toml:2: topics.join[1]: \"a\" is listed twice\n\
         config.toml:5: route[0].topics[0]: \"b\" is not in topics.join\n\
         config.toml:8: route[1].topics: empty; name at least one topic",
    );
    let many: Vec<String> = (0..101).map(|n| format!("\"t{n}\"")).collect();
    refused(
        &format!("[topics]\njoin = [{}]\n", many.join(",")),
        "config.toml:2: topics.join: 101 topics are too many; at most 100",
    );
}

#[test]
fn whoever_lets_others_in_says_whom() {
    const WHO: &str = "must say who may: \"open\" (everybody), \"authenticated\" (whoever proves to \
                       hold a key, NIP-42) or \"list\" (the keys in access.pubkeys)";
    refused(
        "[relay]\nlisten = \"0.0.0.0:4869\"\n",
        &format!(
            "config.toml:2: relay.listen: 0.0.0.0:4869 lets other machines connect, so access.read \
             and access.write {WHO}"
        ),
    );
    refused(
        "[access]\nread = \"open\"\n[relay]\nlisten = \"192.168.1.2:4869\"\n",
        &format!(
            "config.toml:4: relay.listen: 192.168.1.2:4869 lets other machines connect, so \
             access.write {WHO}"
        ),
    );
    refused(
        "[relay]\ntrusted_proxies = [\"127.0.0.1\"]\n",
        &format!(
            "config.toml:2: relay.trusted_proxies: 127.0.0.1 lets other machines connect, so \
             access.read and access.write {WHO}"
        ),
    );
    let flag = User::new().flags(|flags| flags.listen = Some("[::]:4869".to_owned()));
    assert_eq!(
        flag.errors(),
        format!(
            "--listen: relay.listen: [::]:4869 lets other machines connect, so access.read and \
             access.write {WHO}"
        )
    );
    for address in ["127.0.0.1:0", "127.8.8.8:1", "[::1]:0", "[::ffff:127.0.0.1]:0"] {
        User::with_file(&format!("[relay]\nlisten = \"{address}\"\n")).load();
    }
    let open = "[relay]\nlisten = \"0.0.0.0:4869\"\n[access]\nread = \"open\"\nwrite = \"list\"\n";
    let loaded = User::with_file(open).load();
    let warnings = loaded.config.warnings().join("\n");
    assert!(warnings.contains("relay.listen is 0.0.0.0:4869"), "{warnings}");
    assert!(warnings.contains("relay.url is empty"), "{warnings}");
    assert!(warnings.contains("access.pubkeys and relay.admins are empty"), "{warnings}");
    // One mistake is told once.
    refused(
        "[relay]\nlisten = \"0.0.0.0:4869\"\n[access]\nread = \"opne\"\nwrite = \"open\"\n",
        "config.toml:4: access.read: \"opne\" is not one of: \"\", \"open\", \"authenticated\", \"list\"",
    );
}

#[test]
fn access_and_rates_are_checked() {
    refused(
        "[relay]\ntrusted_proxies = [\"proxy\"]\nadmins = [\"me\"]\nicon = \"x\"\npubkey = \"y\"\n",
        "config.toml:2: relay.trusted_proxies[0]: \"proxy\" is neither an IP address nor a network; \
         write it like 10.0.0.0/8\n\
         config.toml:3: relay.admins[0]: \"me\" is not a public key; write 64 hexadecimal digits or \
         npub1…\n\
         config.toml:4: relay.icon: \"x\" is not an http:// or https:// URL; leave it empty (\"\") \
         for none\n\
         config.toml:5: relay.pubkey: \"y\" is not a public key; write 64 hexadecimal digits or \
         npub1…; leave it empty (\"\") for none",
    );
    refused(
        "[rates]\nbytes_per_s = 1000\nburst_s = 2\n",
        "config.toml:2: rates.bytes_per_s: 1000 times rates.burst_s is 2000, less than \
         relay.max_message_bytes (1048576), so the longest messages could never be sent",
    );
    User::with_file("[rates]\nbytes_per_s = 0\nbytes_per_s_per_ip = 0\n").load();
}

#[test]
fn streams_are_checked_each() {
    refused(
        "[[upstream]]\nname = \"A\"\nurls = [\"https://x\"]\ndirection = \"sideways\"\n\n\
         [[upstream]]\nname = \"b\"\nurls = []\ntopics = [\"c\"]\n\n\
         [[upstream]]\nname = \"b\"\n",
        "config.toml:2: upstream[0].name: \"A\" is not a stream name: 1 to 64 of the characters \
         a-z, 0-9, \".\", \"_\" and \"-\"\n\
         config.toml:3: upstream[0].urls[0]: \"https://x\" is not the URL of a relay; write it like \
         wss://relay.example.org\n\
         config.toml:4: upstream[0].direction: \"sideways\" is not one of: \"down\", \"up\", \
         \"both\"\n\
         config.toml:8: upstream[1].urls: missing; name relays in urls, or public keys in follow\n\
         config.toml:9: upstream[1].topics[0]: \"c\" is not in topics.join\n\
         config.toml:11: upstream[2].urls: missing; name relays in urls, or public keys in follow\n\
         config.toml:12: upstream[2].name: \"b\" is the name of another stream too",
    );
    refused(
        "[[upstream]]\nname = \"a\"\nurls = [\"wss://a\", \"wss://me:secret@b\"]\n\
         history = \"30\"\nplugins = [\"Spam\"]\nauth = 1\nmax_relays = 0\n\
         rates = { up_events_per_s = -1, down_event_per_s = 2 }\n",
        "config.toml:3: upstream[0].urls[1]: a relay's URL has no user and no password; relays know \
         the gateway by its key (auth = true, NIP-42)\n\
         config.toml:4: upstream[0].history: \"30\" is not a part of the past; write \"all\", \
         \"none\", or like \"30d\" (s, m, h, d or w)\n\
         config.toml:5: upstream[0].plugins[0]: \"Spam\" is not the id of a plugin; \
         `nostr-gateway plugin list` has them\n\
         config.toml:6: upstream[0].auth: 1 is not true or false\n\
         config.toml:7: upstream[0].max_relays: 0 is not a whole number from 1 to 1000\n\
         config.toml:8: upstream[0].rates.down_event_per_s: unknown key; did you mean \
         down_events_per_s?\n\
         config.toml:8: upstream[0].rates.up_events_per_s: -1 is not a whole number from 0 to 1000000",
    );
}

#[test]
fn a_stream_leads_somewhere_else_and_only_once() {
    let key = "npub180cvv07tjdrrgpa0j7j7tmnyl2yr6yr7l8j4s3evf6u64th6gkwsyjh6w6";
    refused(
        &format!(
            "[relay]\nurl = \"wss://me.example.org\"\n[[upstream]]\nname = \"a\"\nurls = [\n\
             \"ws://localhost:4869/\",\n\"wss://ME.example.org/x\",\n\"wss://a\",\n\"WSS://A:443/\"]\n\
             [[upstream]]\nname = \"b\"\nurls = [\"wss://b\"]\nfollow = [\"{key}\"]\n\
             [[upstream]]\nname = \"c\"\nfollow = [\"{key}\"]\ndirection = \"both\"\n",
        ),
        "config.toml:6: upstream[0].urls[0]: \"ws://localhost:4869/\" is this gateway itself\n\
         config.toml:7: upstream[0].urls[1]: \"wss://ME.example.org/x\" is this gateway itself\n\
         config.toml:9: upstream[0].urls[3]: \"WSS://A:443/\" is listed twice\n\
         config.toml:13: upstream[1].follow: a stream has either urls or follow; make two streams of it\n\
         config.toml:17: upstream[2].direction: with follow it is \"down\": where others write is not \
         where to send to",
    );
}

#[test]
fn relays_to_discover_and_to_fall_back_to_are_for_streams_that_follow() {
    let key = "npub180cvv07tjdrrgpa0j7j7tmnyl2yr6yr7l8j4s3evf6u64th6gkwsyjh6w6";
    refused(
        &format!(
            "[[upstream]]\nname = \"a\"\nurls = [\"wss://a\"]\ndiscover = [\"wss://d\"]\n\
             [[upstream]]\nname = \"b\"\nfollow = [\"{key}\"]\nfallback = [\n\
             \"ws://localhost:4869\",\n\"wss://f\",\n\"wss://F:443/\"]\n",
        ),
        "config.toml:4: upstream[0].discover: it is for streams with follow alone; name relays in urls\n\
         config.toml:9: upstream[1].fallback[0]: \"ws://localhost:4869\" is this gateway itself\n\
         config.toml:11: upstream[1].fallback[2]: \"wss://F:443/\" is listed twice",
    );
    let user = User::with_file(&format!(
        "[[upstream]]\nname = \"b\"\nfollow = [\"{key}\"]\ndiscover = [\"wss://d\"]\n",
    ));
    let stream = &user.load().config.upstream[0];
    assert_eq!((stream.max_relays, stream.relays_per_author), (30, 2));
    assert!(!stream.allow_private_relays && !stream.allow_onion_relays);
}

#[test]
fn what_goes_up_is_public_and_can_be_told_here() {
    refused(
        "[[private_topic]]\nname = \"family\"\n\
         [[upstream]]\nname = \"a\"\nurls = [\"wss://a\"]\ndirection = \"up\"\n\
         filter = { search = \"cats\" }\ntopics = [\"global\", \"family\"]\n\
         [[upstream]]\nname = \"b\"\nurls = [\"wss://a\"]\nfilter = { kinds = [] }\nplugins = []\n",
        "config.toml:7: upstream[0].filter.search: search counts for what relays are asked alone, so \
         the stream's direction must be \"down\"\n\
         config.toml:8: upstream[0].topics[1]: \"family\" is a private topic, whose events go to no \
         relay; take it out, or let the stream's direction be \"down\"\n\
         config.toml:12: upstream[1].filter: no event matches it\n\
         config.toml:13: upstream[1].plugins: empty; leave it out for all plugins, or name at least one",
    );
    let user = User::with_file(
        "[[upstream]]\nname = \"a\"\nurls = [\"wss://a\"]\ndirection = \"both\"\nhistory = \"30d\"\n\
         plugins = [\"blocklist\"]\nauth = true\nrates = { up_events_per_s = 20 }\n",
    );
    let loaded = user.load();
    let stream = &loaded.config.upstream[0];
    assert_eq!(stream.history_up(), crate::upstream::config::History::Seconds(2_592_000));
    assert_eq!(stream.plugins.as_deref(), Some(["blocklist".to_owned()].as_slice()));
    assert_eq!((stream.rates.up_events_per_s, stream.rates.down_events_per_s), (20, 0));
    let shown = show(&loaded);
    assert!(shown.contains("history = \"30d\""), "{shown}");
    let again = User::with_file(&shown).load();
    assert_eq!(again.config, loaded.config);
}

#[test]
fn variables_and_flags_are_named_in_errors() {
    let user = User::new()
        .variable("NOSTR_GATEWAY_RELAY__LISTEN", "")
        .variable("NOSTR_GATEWAY_RELAY__LISTN", "x")
        .variable("NOSTR_GATEWAY_TOPICS__JOIN", "a,b")
        .variable("NOSTR_GATEWAY_DISCOVERY__RETRIES", "many")
        .variable("NOSTR_GATEWAY_FOO", "x")
        // Set by Kubernetes for a service named nostr-gateway.
        .variable("NOSTR_GATEWAY_SERVICE_HOST", "10.0.0.1")
        .variable("NOSTR_GATEWAY_PORT", "tcp://10.0.0.1:4869")
        .flags(|flags| {
            flags.admin = Some("4870".to_owned());
            flags.upstreams = vec!["relay.example.org".to_owned()];
        });
    assert_eq!(
        user.errors(),
        "--admin: admin.listen: \"4870\" is not an address with a port; write it like 127.0.0.1:4869\n\
         --upstream: upstream[0].urls[0]: \"relay.example.org\" is not the URL of a relay; write it \
         like wss://relay.example.org\n\
         NOSTR_GATEWAY_DISCOVERY__RETRIES: discovery.retries: \"many\" is not a whole number from 0 \
         to 10\n\
         NOSTR_GATEWAY_FOO: unknown variable; a key of the configuration is written like \
         NOSTR_GATEWAY_RELAY__LISTEN, with two underscores behind the section\n\
         NOSTR_GATEWAY_RELAY__LISTEN: relay.listen: \"\" is not an address with a port; write it \
         like 127.0.0.1:4869\n\
         NOSTR_GATEWAY_RELAY__LISTN: unknown variable; did you mean NOSTR_GATEWAY_RELAY__LISTEN?\n\
         NOSTR_GATEWAY_TOPICS__JOIN: topics.join: \"a,b\" is not a list of texts, like [\"one\", \
         \"two\"], written as in TOML"
    );
}

#[test]
fn what_is_no_toml_is_told_with_line_and_column() {
    refused(
        "[relay]\nlisten = 127.0.0.1:4869\n",
        "config.toml:2:15: not TOML: expected newline, `#`",
    );
    refused(
        "[relay]\nname = \"a\"\nname = \"b\"\n",
        "config.toml:3:1: not TOML: duplicate key `name` in table `relay`",
    );
    refused("[relay\n", "config.toml:1:7: not TOML: invalid table header; expected `.`, `]`");
    refused(
        "[relay]\nmax_limit = 99999999999999999999\n",
        "config.toml:2:13: not TOML: number too large to fit in target type",
    );
}

#[test]
fn tables_in_the_wrong_place_are_refused() {
    refused(
        "[[upstream]]\n",
        "config.toml:1: upstream[0].name: missing; every [[upstream]] has one\n\
         config.toml:1: upstream[0].urls: missing; name relays in urls, or public keys in follow",
    );
    refused("upstream = [3]", "config.toml:1: upstream[0]: 3 stands here; write [[upstream]]");
    refused("[[relay]]\n", "config.toml:1: relay: a list stands here; write [relay]");
    refused(
        "[topics]\ndefault = []\n[topics.sub]\nx = 1\n",
        "config.toml:3: topics.sub: unknown key; allowed: join, default, join_on_visit, visit_idle_s",
    );
}
