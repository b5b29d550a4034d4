//! Rules that hold between several keys.

use std::collections::BTreeSet;

use super::{Config, check, errors::Problem};
use crate::{
    pipeline::joined::MAX_TOPICS,
    protocol::{OwnUrls, TopicName, normal_url},
    relay::config::AccessRule,
    secrets::config::StoreChoice,
    upstream::config::{MAX_FOLLOWED, MAX_OWN_RELAYS, MAX_STREAMS, MAX_URLS, UpstreamConfig},
};

impl Config {
    /// Everything that is wrong with the values, whoever set them; [`load`](super::load) has
    /// already asked. For configurations put together in code.
    pub fn validate(&self) -> Vec<Problem> {
        check::read(&check::tree_of(self)).1
    }

    /// What is allowed but deserves a line in the log.
    pub fn warnings(&self) -> Vec<String> {
        let listeners = [("relay.listen", self.relay.listen), ("admin.listen", self.admin.listen)];
        let open = listeners.iter().filter(|(_, address)| !address.ip().is_loopback());
        let mut warnings: Vec<String> = open
            .map(|(key, address)| {
                format!("{key} is {address}: other machines may be able to connect")
            })
            .collect();
        let (relay, access) = (&self.relay, &self.access);
        let rules = [access.read, access.write];
        if !relay.url.is_empty() && rules.contains(&AccessRule::Unstated) {
            warnings.push(format!(
                "relay.url is {:?}, and access.read and access.write are not both set: whoever \
                 reaches it may use it",
                relay.url
            ));
        }
        let needs_url = !relay.admins.is_empty()
            || rules
                .iter()
                .any(|rule| matches!(rule, AccessRule::Authenticated | AccessRule::List));
        if needs_url && relay.url.is_empty() && relay.listen.ip().is_unspecified() {
            warnings.push(
                "relay.url is empty: only clients on this machine can authenticate, because they \
                 have to name the relay's URL (NIP-42)"
                    .to_owned(),
            );
        }
        let secrets = &self.secrets;
        if !secrets.key_file.as_os_str().is_empty()
            && matches!(secrets.store, StoreChoice::Keyring | StoreChoice::Memory)
        {
            warnings.push(
                "secrets.key_file counts for nothing: it opens the encrypted file, and secrets.store \
                 names another place"
                    .to_owned(),
            );
        }
        match (rules.contains(&AccessRule::List), access.pubkeys.is_empty()) {
            (true, true) if relay.admins.is_empty() => warnings.push(
                "access.pubkeys and relay.admins are empty: nobody is on the list, and nobody can \
                 put anybody there"
                    .to_owned(),
            ),
            (false, false) => warnings.push(
                "access.pubkeys counts for nothing: neither access.read nor access.write is \"list\""
                    .to_owned(),
            ),
            _ => {}
        }
        warnings
    }
}

/// Checks what single keys cannot tell.
pub(super) fn across(config: &Config) -> Vec<Problem> {
    let mut problems = Vec::new();
    listeners(config, &mut problems);
    access(config, &mut problems);
    sizes(config, &mut problems);
    topics(config, &mut problems);
    routes(config, &mut problems);
    upstreams(config, &mut problems);
    retention(config, &mut problems);
    problems
}

fn listeners(config: &Config, problems: &mut Vec<Problem>) {
    let (relay, admin) = (config.relay.listen, config.admin.listen);
    let same_ip = relay.ip() == admin.ip()
        || (relay.is_ipv4() == admin.is_ipv4()
            && (relay.ip().is_unspecified() || admin.ip().is_unspecified()));
    if relay.port() != 0 && relay.port() == admin.port() && same_ip {
        let text = format!("{admin} is taken by relay.listen ({relay}); use another port");
        problems.push(Problem::new("admin.listen", text).with("relay.listen"));
    }
}

/// Nobody is to run an open relay by accident.
fn access(config: &Config, problems: &mut Vec<Problem>) {
    let (relay, access) = (&config.relay, &config.access);
    let (key, value) = if !relay.listen.ip().to_canonical().is_loopback() {
        ("relay.listen", relay.listen.to_string())
    } else if let Some(proxy) = relay.trusted_proxies.first() {
        ("relay.trusted_proxies", proxy.to_string())
    } else {
        return;
    };
    let rules = [("access.read", access.read), ("access.write", access.write)];
    let missing: Vec<&'static str> = rules
        .iter()
        .filter(|(_, rule)| *rule == AccessRule::Unstated)
        .map(|(key, _)| *key)
        .collect();
    let Some(first) = missing.first() else { return };
    let text = format!(
        "{value} lets other machines connect, so {} must say who may: \"open\" (everybody), \
         \"authenticated\" (whoever proves to hold a key, NIP-42) or \"list\" (the keys in \
         access.pubkeys)",
        missing.join(" and ")
    );
    problems.push(Problem::new(key, text).with(first));
}

fn sizes(config: &Config, problems: &mut Vec<Problem>) {
    let (message, event) = (config.relay.max_message_bytes, config.limits.max_event_bytes);
    if message < event {
        let text = format!(
            "{message} is less than limits.max_event_bytes ({event}), so the largest events could not be sent"
        );
        problems.push(Problem::new("relay.max_message_bytes", text).with("limits.max_event_bytes"));
    }
    for (key, rate) in [
        ("rates.bytes_per_s", config.rates.bytes_per_s),
        ("rates.bytes_per_s_per_ip", config.rates.bytes_per_s_per_ip),
    ] {
        let burst = u64::from(rate) * u64::from(config.rates.burst_s);
        if rate != 0 && burst < message as u64 {
            let text = format!(
                "{rate} times rates.burst_s is {burst}, less than relay.max_message_bytes \
                 ({message}), so the longest messages could never be sent"
            );
            problems.push(Problem::new(key, text).with("relay.max_message_bytes"));
        }
    }
    let (default, max) = (config.relay.default_limit, config.relay.max_limit);
    if default > max {
        let text = format!("{default} is more than relay.max_limit ({max})");
        problems.push(Problem::new("relay.default_limit", text).with("relay.max_limit"));
    }
}

fn topics(config: &Config, problems: &mut Vec<Problem>) {
    let join = &config.topics.join;
    if join.len() > MAX_TOPICS {
        let text = format!("{} topics are too many; at most {MAX_TOPICS}", join.len());
        problems.push(Problem::new("topics.join", text));
    }
    let mut seen = BTreeSet::new();
    for (index, topic) in join.iter().enumerate() {
        if !seen.insert(topic) {
            let text = format!("{:?} is listed twice", topic.as_str());
            problems.push(Problem::new(format!("topics.join[{index}]"), text));
        }
    }
    let mut private = BTreeSet::new();
    for (index, topic) in config.private_topic.iter().enumerate() {
        if seen.contains(&topic.name) || !private.insert(&topic.name) {
            let text = format!("{:?} is the name of another topic too", topic.name.as_str());
            problems.push(Problem::new(format!("private_topic[{index}].name"), text));
        }
    }
    let mut joined = |key: String, names: &[TopicName]| {
        let known = |name: &TopicName| seen.contains(name) || private.contains(name);
        for (index, name) in names.iter().enumerate().filter(|(_, name)| !known(name)) {
            let text = format!("{:?} is not in topics.join", name.as_str());
            problems.push(Problem::new(format!("{key}[{index}]"), text).with("topics.join"));
        }
    };
    joined("topics.default".to_owned(), &config.topics.default);
    for (index, route) in config.route.iter().enumerate() {
        joined(format!("route[{index}].topics"), &route.topics);
    }
    for (index, upstream) in config.upstream.iter().enumerate() {
        joined(format!("upstream[{index}].topics"), &upstream.topics);
    }
}

fn routes(config: &Config, problems: &mut Vec<Problem>) {
    for (index, route) in config.route.iter().enumerate() {
        if route.topics.is_empty() {
            let text = "empty; name at least one topic";
            problems.push(Problem::new(format!("route[{index}].topics"), text));
        }
    }
}

fn retention(config: &Config, problems: &mut Vec<Problem>) {
    for (index, rule) in config.retention.iter().enumerate() {
        if rule.max_age_s == 0 && rule.max_events == 0 && rule.max_bytes == 0 {
            let text = "no bound; set max_age_s, max_events or max_bytes";
            problems.push(Problem::new(format!("retention[{index}]"), text));
        }
    }
}

fn upstreams(config: &Config, problems: &mut Vec<Problem>) {
    if config.upstream.len() > MAX_STREAMS {
        let text = format!("{} streams are too many; at most {MAX_STREAMS}", config.upstream.len());
        problems.push(Problem::new("upstream", text));
    }
    let mut names = BTreeSet::new();
    for (index, upstream) in config.upstream.iter().enumerate() {
        let mut wrong = |key: &str, text: String| {
            problems.push(Problem::new(format!("upstream[{index}].{key}"), text));
        };
        if !names.insert(&upstream.name) {
            wrong("name", format!("{:?} is the name of another stream too", upstream.name));
        }
        relays(config, upstream, &mut wrong);
        if upstream.filter.matches_nothing() {
            wrong("filter", "no event matches it".to_owned());
        }
        if let Some([]) = upstream.plugins.as_deref() {
            wrong(
                "plugins",
                "empty; leave it out for all plugins, or name at least one".to_owned(),
            );
        }
        if upstream.direction.is_up() {
            upwards(config, upstream, &mut wrong);
        }
    }
}

/// Where a stream leads.
fn relays(config: &Config, upstream: &UpstreamConfig, wrong: &mut impl FnMut(&str, String)) {
    let (urls, follow) = (&upstream.urls, &upstream.follow);
    match (urls.is_empty(), follow.is_empty()) {
        (true, true) => {
            let text = "missing; name relays in urls, or public keys in follow";
            wrong("urls", text.to_owned());
        }
        (false, false) => {
            let text = "a stream has either urls or follow; make two streams of it";
            wrong("follow", text.to_owned());
        }
        (false, true) if urls.len() > MAX_URLS => {
            wrong("urls", format!("{} relays are too many; at most {MAX_URLS}", urls.len()));
        }
        (true, false) if follow.len() > MAX_FOLLOWED => {
            wrong("follow", format!("{} keys are too many; at most {MAX_FOLLOWED}", follow.len()));
        }
        (true, false) if upstream.direction.is_up() => {
            let text = "with follow it is \"down\": where others write is not where to send to";
            wrong("direction", text.to_owned());
        }
        _ => {}
    }
    let own = own_urls(config);
    let lists =
        [("urls", urls), ("discover", &upstream.discover), ("fallback", &upstream.fallback)];
    for (name, urls) in lists {
        if name != "urls" && !urls.is_empty() && follow.is_empty() {
            wrong(name, "it is for streams with follow alone; name relays in urls".to_owned());
        }
        if name != "urls" && urls.len() > MAX_OWN_RELAYS {
            wrong(name, format!("{} relays are too many; at most {MAX_OWN_RELAYS}", urls.len()));
        }
        let mut seen = BTreeSet::new();
        for (index, url) in urls.iter().enumerate() {
            let key = format!("{name}[{index}]");
            if own.contains(url) {
                wrong(&key, format!("{url:?} is this gateway itself"));
            } else if !seen.insert(normal_url(url)) {
                wrong(&key, format!("{url:?} is listed twice"));
            }
        }
    }
}

/// Under which URLs a stream would lead back here.
fn own_urls(config: &Config) -> OwnUrls {
    let relay = &config.relay;
    let mut own = OwnUrls::new([relay.url.as_str()]);
    let port = relay.listen.port();
    if port != 0 {
        own = own.and(&format!("ws://{}", relay.listen));
        if relay.listen.ip().is_loopback() || relay.listen.ip().is_unspecified() {
            own = ["127.0.0.1", "localhost", "[::1]"]
                .into_iter()
                .fold(own, |own, host| own.and(&format!("ws://{host}:{port}")));
        }
    }
    own
}

/// What is sent to other relays.
fn upwards(config: &Config, upstream: &UpstreamConfig, wrong: &mut impl FnMut(&str, String)) {
    for (index, topic) in upstream.topics.iter().enumerate() {
        if config.private_topic.iter().any(|private| private.name == *topic) {
            let text = format!(
                "{:?} is a private topic, whose events go to no relay; take it out, or let the \
                 stream's direction be \"down\"",
                topic.as_str()
            );
            wrong(&format!("topics[{index}]"), text);
        }
    }
    if upstream.filter.words().is_some() {
        let text = "search counts for what relays are asked alone, so the stream's direction must be \
                    \"down\"";
        wrong("filter.search", text.to_owned());
    }
}
