//! Uses `kv` and `lookup` as the event's content says, and says what came of it.

use nostr_gateway_plugin::{
    Context, Event, EventFilter, Verdict, export_event_filter, kv, lookup, lookup::Query,
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
            ["set", key, value] => {
                format!("{:?}", kv::set(key, value.as_bytes(), None).map_err(kv_error))
            }
            ["set", key, value, ttl] => {
                format!("{:?}", kv::set(key, value.as_bytes(), ttl.parse().ok()).map_err(kv_error))
            }
            ["delete", key] => kv::delete(key).to_string(),
            ["increment", key, by] => {
                format!("{:?}", kv::increment(key, number(by), None).map_err(kv_error))
            }
            ["increment", key, by, ttl] => {
                format!("{:?}", kv::increment(key, number(by), ttl.parse().ok()).map_err(kv_error))
            }
            ["long", length] => {
                format!(
                    "{:?}",
                    kv::set("long", &vec![7; length.parse().unwrap_or(0)], None).map_err(kv_error)
                )
            }
            ["fill"] => fill(),
            ["flood"] => flood(),
            ["author", key] => format!("{:?}", lookup::author(key).map_err(lookup_error)),
            ["count", authors, kinds, since, most] => {
                let query = Query {
                    authors: authors.split_terminator(',').map(str::to_owned).collect(),
                    kinds: kinds.split(',').filter_map(|kind| kind.parse().ok()).collect(),
                    since: since.parse().ok(),
                };
                format!(
                    "{:?}",
                    lookup::count(&query, most.parse().unwrap_or(0)).map_err(lookup_error)
                )
            }
            ["follows", key, whom] => {
                format!("{:?}", lookup::follows(key, whom).map_err(lookup_error))
            }
            ["list", key, most] => {
                format!(
                    "{:?}",
                    lookup::list_follows(key, most.parse().unwrap_or(0)).map_err(lookup_error)
                )
            }
            ["tags", key, kind, most] => {
                let most = most.parse().unwrap_or(0);
                let tags = lookup::list_tags(key, kind.parse().unwrap_or(0), most);
                format!("{:?}", tags.map_err(lookup_error))
            }
            ["asks", key, times] => asks(key, number(times)),
            ["asks", key] => asks(key, i64::MAX),
            _ => return Verdict::Accept,
        };
        Verdict::Reject(said)
    }
}

fn kv_error(error: kv::Error) -> &'static str {
    error.name()
}

fn lookup_error(error: lookup::Error) -> &'static str {
    error.name()
}

/// Keys until the quota is full.
fn fill() -> String {
    for n in 0.. {
        if let Err(error) = kv::set(&format!("key{n}"), &[1; 100], None) {
            return format!("{n} keys, then {}", kv_error(error));
        }
    }
    String::new()
}

/// Ever new keys, whatever becomes of them.
fn flood() -> ! {
    let mut n = 0_u64;
    loop {
        let key = format!("{n}");
        if kv::set(&key, &[1; 1_000], Some(1)) == Err(kv::Error::Quota) {
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
