//! Uses `kv` and `lookup` as the event's content says, and says what came of it.

use nostr_gateway_plugin::{
    Context, Event, EventFilter, Verdict, export_event_filter,
    kv::{self, Error},
    lookup::{self, Query},
};

struct Ask;

impl EventFilter for Ask {
    fn init() -> Result<Self, String> {
        Ok(Self)
    }

    fn evaluate(&mut self, event: Event, _context: Context) -> Verdict {
        let words: Vec<&str> = event.content.split(' ').collect();
        let number = |text: &str| text.parse().unwrap_or(0);
        let said = match words.as_slice() {
            ["get", key] => {
                format!(
                    "{:?}",
                    kv::get(key).map(|value| String::from_utf8_lossy(&value).into_owned())
                )
            }
            ["set", key, value] => format!("{:?}", kv::set(key, value.as_bytes(), None)),
            ["set", key, value, ttl] => {
                format!("{:?}", kv::set(key, value.as_bytes(), ttl.parse().ok()))
            }
            ["delete", key] => kv::delete(key).to_string(),
            ["increment", key, by] => format!("{:?}", kv::increment(key, number(by), None)),
            ["increment", key, by, ttl] => {
                format!("{:?}", kv::increment(key, number(by), ttl.parse().ok()))
            }
            ["long", length] => {
                format!("{:?}", kv::set("long", &vec![7; length.parse().unwrap_or(0)], None))
            }
            ["fill"] => fill(),
            ["flood"] => flood(),
            ["author", key] => format!("{:?}", lookup::author(key)),
            ["count", authors, kinds, since, most] => {
                let query = Query {
                    authors: authors.split_terminator(',').map(str::to_owned).collect(),
                    kinds: kinds.split(',').filter_map(|kind| kind.parse().ok()).collect(),
                    since: since.parse().ok(),
                };
                format!("{:?}", lookup::count(&query, most.parse().unwrap_or(0)))
            }
            ["follows", key, whom] => format!("{:?}", lookup::follows(key, whom)),
            ["list", key, most] => {
                format!("{:?}", lookup::list_follows(key, most.parse().unwrap_or(0)))
            }
            ["asks", key, times] => asks(key, number(times)),
            ["asks", key] => asks(key, i64::MAX),
            _ => return Verdict::Accept,
        };
        Verdict::Reject(said)
    }
}

/// Keys until the quota is full.
fn fill() -> String {
    for n in 0.. {
        if let Err(error) = kv::set(&format!("key{n}"), &[1; 100], None) {
            return format!("{n} keys, then {error:?}");
        }
    }
    String::new()
}

/// Ever new keys, whatever becomes of them.
fn flood() -> ! {
    let mut n = 0_u64;
    loop {
        let key = format!("{n}");
        if kv::set(&key, &[1; 1_000], Some(1)) == Err(Error::Quota) {
            kv::delete(&key);
        }
        n += 1;
    }
}

/// The same question again and again.
fn asks(key: &str, times: i64) -> String {
    let (mut answered, mut refused) = (0, 0);
    for _ in 0..times {
        match lookup::author(key) {
            Ok(_) => answered += 1,
            Err(_) => refused += 1,
        }
    }
    format!("{answered} answered, {refused} refused")
}

export_event_filter!(Ask);
