//! Every key of the configuration: where it stands, what it may be. The order is that of the
//! annotated default and of `config show`.

use figment::value::Value;

use super::{
    check::closest,
    values::{self, Check},
};

/// A section of the file.
pub(super) struct Section {
    pub name: &'static str,
    /// `[[name]]` instead of `[name]`.
    pub list: bool,
    pub keys: &'static [Key],
}

/// A key of a section.
pub(super) struct Key {
    pub name: &'static str,
    pub form: Form,
    /// Only in `[[…]]` sections: whether it can be left out.
    pub required: bool,
}

/// What a value may be. Type, bounds and the text that says so are one thing, so that they cannot
/// drift apart.
pub(super) enum Form {
    Switch,
    /// A whole number, both bounds included.
    Number(i128, i128),
    /// A list of such numbers.
    Numbers(i128, i128),
    /// A text that the check accepts.
    Text(Check),
    /// A list of texts that the check accepts.
    Texts(Check),
    /// A word with a meaning, a text, or a list of texts.
    WordOrTexts(&'static [&'static str], Check),
    /// A NIP-01 filter, as a table.
    Filter,
    /// A table with keys of its own.
    Table(&'static [Key]),
}

const fn key(name: &'static str, form: Form) -> Key {
    Key { name, form, required: false }
}

const fn required(name: &'static str, form: Form) -> Key {
    Key { name, form, required: true }
}

/// A hundred years: longer is a slip of the pen.
const CENTURY_S: i128 = 3_153_600_000;

/// A petabyte: more is a slip of the pen.
const MAX_BYTES: i128 = 1_000_000_000_000_000;

pub(super) const SECTIONS: &[Section] = &[
    Section {
        name: "relay",
        list: false,
        keys: &[
            key("listen", Form::Text(values::address)),
            key("url", Form::Text(values::websocket_url_or_empty)),
            key("trusted_origins", Form::Texts(values::origin)),
            key("trusted_proxies", Form::Texts(values::network)),
            key("admins", Form::Texts(values::public_key)),
            key("name", Form::Text(values::any)),
            key("description", Form::Text(values::any)),
            key("contact", Form::Text(values::any)),
            key("pubkey", Form::Text(values::public_key_or_empty)),
            key("icon", Form::Text(values::http_url_or_empty)),
            key("max_connections", Form::Number(1, 100_000)),
            key("max_subscriptions", Form::Number(1, 10_000)),
            key("max_filters", Form::Number(1, 1_000)),
            key("max_limit", Form::Number(1, 1_000_000)),
            key("default_limit", Form::Number(1, 1_000_000)),
            key("max_negentropy_events", Form::Number(1, 10_000_000)),
            key("max_message_bytes", Form::Number(1_024, 67_108_864)),
            key("idle_timeout_s", Form::Number(10, 3_600)),
            key("reader_patience_s", Form::Number(1, 600)),
        ],
    },
    Section {
        name: "access",
        list: false,
        keys: &[
            key("read", Form::Text(values::access_rule)),
            key("write", Form::Text(values::access_rule)),
            key("pubkeys", Form::Texts(values::public_key)),
        ],
    },
    Section {
        name: "rates",
        list: false,
        keys: &[
            key("connections_per_ip", Form::Number(0, 100_000)),
            key("subscriptions_per_ip", Form::Number(0, 1_000_000)),
            key("filters_per_ip", Form::Number(0, 10_000_000)),
            key("messages_per_s", Form::Number(0, 1_000_000)),
            key("bytes_per_s", Form::Number(0, 100_000_000)),
            key("messages_per_s_per_ip", Form::Number(0, 1_000_000)),
            key("bytes_per_s_per_ip", Form::Number(0, 100_000_000)),
            key("events_per_minute_per_ip", Form::Number(0, 10_000_000)),
            // A hundred million times forty still fits the buckets.
            key("burst_s", Form::Number(1, 40)),
        ],
    },
    Section { name: "admin", list: false, keys: &[key("listen", Form::Text(values::address))] },
    Section {
        name: "endpoint",
        list: false,
        keys: &[
            key("bind", Form::Text(values::address)),
            key("external_addresses", Form::Texts(values::address_with_port)),
            key("iroh_relays", Form::WordOrTexts(&["default", "disabled"], values::http_url)),
            key("pkarr_relay", Form::Text(values::http_url_or_empty)),
        ],
    },
    Section {
        name: "discovery",
        list: false,
        keys: &[
            key("dht", Form::Switch),
            key("dht_bootstrap", Form::Texts(values::host_and_port)),
            key("dht_private_addresses", Form::Switch),
            key("mdns", Form::Switch),
            key("mdns_service", Form::Text(values::mdns_service)),
            key("peers", Form::Texts(values::peer)),
            key("records_per_minute", Form::Number(1, 100)),
            key("retries", Form::Number(0, 10)),
            key("jitter_ms", Form::Number(0, 60_000)),
            key("timeout_ms", Form::Number(1, 120_000)),
            key("republish_s", Form::Number(1, 86_400)),
        ],
    },
    Section {
        name: "sync",
        list: false,
        keys: &[
            key("interval_s", Form::Number(1, 86_400)),
            key("max_bytes_per_minute", Form::Number(1_048_576, MAX_BYTES)),
        ],
    },
    Section {
        name: "limits",
        list: false,
        keys: &[
            key("max_event_bytes", Form::Number(256, 16_777_216)),
            key("max_event_tags", Form::Number(1, 100_000)),
            key("max_future_s", Form::Number(0, CENTURY_S)),
            key("max_past_s", Form::Number(0, CENTURY_S)),
            key("min_pow", Form::Number(0, 256)),
        ],
    },
    Section {
        name: "topics",
        list: false,
        keys: &[
            key("join", Form::Texts(values::topic)),
            key("default", Form::Texts(values::topic)),
            key("join_on_visit", Form::Number(0, 100)),
            key("visit_idle_s", Form::Number(1, 2_592_000)),
        ],
    },
    Section {
        name: "plugins",
        list: false,
        keys: &[
            key("dir", Form::Text(values::any)),
            key("quarantine_after", Form::Number(0, 1_000_000)),
            key("rotation_check_s", Form::Number(1, 86_400)),
            key("budget_ms", Form::Number(1, 60_000)),
        ],
    },
    Section {
        name: "secrets",
        list: false,
        keys: &[
            key("store", Form::Text(values::secret_store)),
            key("key_file", Form::Text(values::key_file)),
            key("timeout_ms", Form::Number(100, 600_000)),
        ],
    },
    Section {
        name: "storage",
        list: false,
        keys: &[
            key("durability", Form::Text(values::durability)),
            key("search", Form::Switch),
            key("max_bytes", Form::Number(0, MAX_BYTES)),
        ],
    },
    Section {
        name: "retention",
        list: true,
        keys: &[
            key("kinds", Form::Numbers(0, 65_535)),
            key("topic", Form::Text(values::topic_or_empty)),
            key("max_age_s", Form::Number(0, CENTURY_S)),
            key("max_events", Form::Number(0, MAX_BYTES)),
            key("max_bytes", Form::Number(0, MAX_BYTES)),
        ],
    },
    Section {
        name: "route",
        list: true,
        keys: &[required("filter", Form::Filter), required("topics", Form::Texts(values::topic))],
    },
    Section {
        name: "private_topic",
        list: true,
        keys: &[
            required("name", Form::Text(values::topic)),
            key("readers", Form::Texts(values::public_key)),
        ],
    },
    Section {
        name: "upstream",
        list: true,
        keys: &[
            required("name", Form::Text(values::upstream_name)),
            key("urls", Form::Texts(values::upstream_url)),
            key("follow", Form::Texts(values::public_key)),
            key("direction", Form::Text(values::direction)),
            key("filter", Form::Filter),
            key("topics", Form::Texts(values::topic)),
            key("history", Form::Text(values::history)),
            key("plugins", Form::Texts(values::plugin_id)),
            key("auth", Form::Switch),
            key("rates", Form::Table(UPSTREAM_RATES)),
            key("max_relays", Form::Number(1, 1_000)),
            key("relays_per_author", Form::Number(1, 5)),
            key("discover", Form::Texts(values::upstream_url)),
            key("fallback", Form::Texts(values::upstream_url)),
            key("allow_private_relays", Form::Switch),
            key("allow_onion_relays", Form::Switch),
        ],
    },
];

const UPSTREAM_RATES: &[Key] = &[
    key("down_events_per_s", Form::Number(0, 1_000_000)),
    key("up_events_per_s", Form::Number(0, 1_000_000)),
];

pub(super) fn section(name: &str) -> Option<&'static Section> {
    SECTIONS.iter().find(|section| section.name == name)
}

impl Section {
    pub fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    /// `[relay]` or `[[route]]`.
    pub fn header(&self) -> String {
        if self.list { format!("[[{}]]", self.name) } else { format!("[{}]", self.name) }
    }
}

impl Form {
    /// What is wrong with the value: where in it, as in `[0]` or `.key`, and a sentence that continues
    /// after the key and a colon.
    pub fn problems(&self, value: &Value) -> Vec<(String, String)> {
        match (self, value) {
            (Self::Switch, Value::Bool(..)) => Vec::new(),
            (Self::Switch, other) => one(other, "true or false"),
            (Self::Number(min, max), Value::Num(..)) => match whole(value) {
                Some(number) if (*min..=*max).contains(&number) => Vec::new(),
                _ => one(value, &format!("a whole number from {min} to {max}")),
            },
            (Self::Number(min, max), other) => {
                one(other, &format!("a whole number from {min} to {max}"))
            }
            (Self::Numbers(min, max), Value::Array(_, list)) => list
                .iter()
                .enumerate()
                .filter(|(_, element)| !whole(element).is_some_and(|n| (*min..=*max).contains(&n)))
                .map(|(index, element)| {
                    let wanted = format!("a whole number from {min} to {max}");
                    (format!("[{index}]"), is_not(element, &wanted))
                })
                .collect(),
            (Self::Numbers(..), other) => one(other, "a list of numbers, like [1, 30023]"),
            (Self::Text(check), Value::String(_, text)) => {
                check(text).err().map(|error| (String::new(), error)).into_iter().collect()
            }
            (Self::Text(_), other) => one(other, "a text in quotation marks"),
            (Self::WordOrTexts(words, _), Value::String(_, text))
                if words.contains(&text.as_str()) =>
            {
                Vec::new()
            }
            (Self::WordOrTexts(words, check), Value::String(_, text)) => check(text)
                .err()
                .map(|error| {
                    let words: Vec<String> =
                        words.iter().map(|word| format!("\"{word}\"")).collect();
                    let text = format!("{error}; or one of the words {}", words.join(" and "));
                    (String::new(), text)
                })
                .into_iter()
                .collect(),
            (Self::Texts(check) | Self::WordOrTexts(_, check), Value::Array(_, list)) => list
                .iter()
                .enumerate()
                .filter_map(|(index, element)| {
                    let error = match element {
                        Value::String(_, text) => check(text).err()?,
                        other => is_not(other, "a text in quotation marks"),
                    };
                    Some((format!("[{index}]"), error))
                })
                .collect(),
            (Self::Texts(_), other) => one(other, "a list of texts, like [\"one\", \"two\"]"),
            (Self::WordOrTexts(..), other) => one(other, "a text or a list of texts"),
            (Self::Filter, Value::Dict(..)) => {
                match value.deserialize::<crate::protocol::Filter>() {
                    Ok(_) => Vec::new(),
                    Err(error) => {
                        vec![(String::new(), format!("not a NIP-01 filter: {}", error.kind))]
                    }
                }
            }
            (Self::Filter, other) => one(other, "a NIP-01 filter, like { kinds = [1] }"),
            (Self::Table(keys), Value::Dict(_, given)) => given
                .iter()
                .flat_map(|(name, value)| {
                    match keys.iter().find(|key| key.name == name) {
                        Some(key) => key.form.problems(value),
                        None => vec![(String::new(), unknown_key(name, keys))],
                    }
                    .into_iter()
                    .map(move |(place, text)| (format!(".{name}{place}"), text))
                })
                .collect(),
            (Self::Table(keys), other) => {
                let names: Vec<&str> = keys.iter().map(|key| key.name).collect();
                one(other, &format!("a table of {}", names.join(", ")))
            }
        }
    }
}

fn one(value: &Value, wanted: &str) -> Vec<(String, String)> {
    vec![(String::new(), is_not(value, wanted))]
}

/// What to say of a key that is not among these.
pub(super) fn unknown_key(name: &str, keys: &[Key]) -> String {
    let names: Vec<&str> = keys.iter().map(|key| key.name).collect();
    match closest(name, &names) {
        Some(close) => format!("unknown key; did you mean {close}?"),
        None => format!("unknown key; allowed: {}", names.join(", ")),
    }
}

fn is_not(value: &Value, wanted: &str) -> String {
    format!("{} is not {wanted}", shown(value))
}

/// The value as it would be written, or what it is where that would be long.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Dict(..) => "a table".to_owned(),
        Value::Array(..) => "a list".to_owned(),
        Value::String(_, text) => format!("{text:?}"),
        Value::Char(_, letter) => format!("{:?}", letter.to_string()),
        Value::Bool(_, on) => on.to_string(),
        Value::Num(..) => match (whole(value), value.to_f64()) {
            (Some(number), _) => number.to_string(),
            (None, Some(number)) => number.to_string(),
            (None, None) => "the number".to_owned(),
        },
        Value::Empty(..) => "nothing".to_owned(),
    }
}

/// The value as a whole number, signed or not.
pub(super) fn whole(value: &Value) -> Option<i128> {
    value.to_i128().or_else(|| i128::try_from(value.to_u128()?).ok())
}
