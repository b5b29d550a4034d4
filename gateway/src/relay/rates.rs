//! How much clients of other machines may do: token buckets and counters, per connection and per
//! address. Programs on this machine have no bounds here.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use governor::{DefaultDirectRateLimiter, Quota};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::config::RatesConfig;
use crate::{
    clock::unix_now,
    protocol::{Prefix, Reason},
};

/// What a connection may be refused in a minute before it is closed.
const PATIENCE: NonZeroU32 = NonZeroU32::new(100).expect("a hundred is not zero");
/// Addresses remembered while nothing of theirs is open.
const MAX_IDLE: usize = 16_384;
/// Seconds after which such an address is forgotten; every bucket is full again by then.
const FORGET_S: u64 = 120;
/// TCP connections of one address that may be waiting for an answer beside its websockets: enough to
/// be told that there are too many.
const SPARE_SOCKETS: u32 = 16;
/// Counts and reconciliations of one address that may wait for an answer. One of them is read from
/// the store at a time: there are few threads for long queries, and everybody's wait for them.
const MAX_LONG_QUERIES: u32 = 100;

/// The bounds of this relay, and what each address has used of them.
pub struct Rates {
    config: RatesConfig,
    addresses: Mutex<HashMap<IpAddr, Arc<Address>>>,
}

/// Too much at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimited {
    pub reason: Reason,
    /// It goes on and on: close the connection.
    pub flooding: bool,
}

impl Rates {
    pub fn new(config: RatesConfig) -> Self {
        Self { config, addresses: Mutex::default() }
    }

    /// A TCP connection; `None` when the address has far too many. Given back when dropped.
    pub fn socket(&self, address: IpAddr) -> Option<Held> {
        let address = self.address(address);
        let max = match self.config.connections_per_ip {
            0 => 0,
            max => max.saturating_add(SPARE_SOCKETS),
        };
        Held::take(address, Counter::Sockets, 1, max)
    }

    /// A plain HTTP request.
    ///
    /// # Errors
    /// When the address sends too many messages.
    pub fn request(&self, address: IpAddr) -> Result<(), Reason> {
        spend(&self.address(address).messages, 1)
            .then_some(())
            .ok_or_else(|| limited("messages_per_s_per_ip", self.config.messages_per_s_per_ip))
    }

    /// A websocket connection.
    ///
    /// # Errors
    /// When the address has too many.
    pub fn connect(&self, address: IpAddr) -> Result<Arc<ClientRates>, Reason> {
        let max = self.config.connections_per_ip;
        let connection = Held::take(self.address(address), Counter::Connections, 1, max)
            .ok_or_else(|| limited("connections_per_ip", max))?;
        let burst_s = self.config.burst_s;
        Ok(Arc::new(ClientRates {
            config: self.config.clone(),
            messages: per_second(self.config.messages_per_s, burst_s),
            bytes: per_second(self.config.bytes_per_s, burst_s),
            patience: DefaultDirectRateLimiter::direct(Quota::per_minute(PATIENCE)),
            connection,
        }))
    }

    fn address(&self, address: IpAddr) -> Arc<Address> {
        let key = grouped(address);
        let mut addresses = self.lock();
        if let Some(known) = addresses.get(&key) {
            known.seen.store(unix_now(), Ordering::Relaxed);
            return known.clone();
        }
        if addresses.len() >= MAX_IDLE {
            forget_idle(&mut addresses, unix_now());
        }
        let new = Arc::new(Address::new(&self.config));
        addresses.insert(key, new.clone());
        new
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Arc<Address>>> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes the addresses that have nothing open: those not seen for a while, and if they are still
/// too many, all of them. What is open is bounded by `relay.max_connections`.
fn forget_idle(addresses: &mut HashMap<IpAddr, Arc<Address>>, now: u64) {
    let is_open = |address: &Arc<Address>| Arc::strong_count(address) > 1;
    addresses.retain(|_, address| {
        is_open(address) || now.saturating_sub(address.seen.load(Ordering::Relaxed)) < FORGET_S
    });
    if addresses.len() >= MAX_IDLE {
        addresses.retain(|_, address| is_open(address));
    }
}

/// One customer of an IPv6 network has a /64 at least.
fn grouped(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

type Bucket = Option<DefaultDirectRateLimiter>;

/// `None` for no bound.
fn per_second(rate: u32, burst_s: u32) -> Bucket {
    let rate = NonZeroU32::new(rate)?;
    let burst = rate.saturating_mul(NonZeroU32::new(burst_s).unwrap_or(NonZeroU32::MIN));
    Some(DefaultDirectRateLimiter::direct(Quota::per_second(rate).allow_burst(burst)))
}

/// Takes `cells` out of the bucket, or nothing. More than it can ever hold are never there.
fn spend(bucket: &Bucket, cells: usize) -> bool {
    let cells = u32::try_from(cells).unwrap_or(u32::MAX);
    match (bucket, NonZeroU32::new(cells)) {
        (Some(bucket), Some(cells)) => matches!(bucket.check_n(cells), Ok(Ok(()))),
        _ => true,
    }
}

fn limited(key: &str, max: u32) -> Reason {
    Reason::new(Prefix::RateLimited, format!("more than {max} (rates.{key})"))
}

/// What all connections of one address share.
struct Address {
    sockets: AtomicU32,
    connections: AtomicU32,
    subscriptions: AtomicU32,
    filters: AtomicU32,
    long_queries: AtomicU32,
    /// Made when first needed, as few clients ask long queries.
    turn: OnceLock<Arc<Semaphore>>,
    sync_room: OnceLock<Arc<Semaphore>>,
    messages: Bucket,
    bytes: Bucket,
    events: Bucket,
    /// Unix seconds.
    seen: AtomicU64,
}

impl Address {
    fn new(config: &RatesConfig) -> Self {
        let per_minute = NonZeroU32::new(config.events_per_minute_per_ip).map(Quota::per_minute);
        Self {
            sockets: AtomicU32::new(0),
            connections: AtomicU32::new(0),
            subscriptions: AtomicU32::new(0),
            filters: AtomicU32::new(0),
            long_queries: AtomicU32::new(0),
            turn: OnceLock::new(),
            sync_room: OnceLock::new(),
            messages: per_second(config.messages_per_s_per_ip, config.burst_s),
            bytes: per_second(config.bytes_per_s_per_ip, config.burst_s),
            events: per_minute.map(DefaultDirectRateLimiter::direct),
            seen: AtomicU64::new(unix_now()),
        }
    }

    fn counter(&self, counter: Counter) -> &AtomicU32 {
        match counter {
            Counter::Sockets => &self.sockets,
            Counter::Connections => &self.connections,
            Counter::Subscriptions => &self.subscriptions,
            Counter::Filters => &self.filters,
            Counter::LongQueries => &self.long_queries,
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Counter {
    Sockets,
    Connections,
    Subscriptions,
    Filters,
    LongQueries,
}

/// So many of something that an address has open; given back when dropped.
pub struct Held {
    address: Arc<Address>,
    counter: Counter,
    count: u32,
}

impl Held {
    /// `None` when that would be more than `max`; 0 is no bound.
    fn take(address: Arc<Address>, counter: Counter, count: u32, max: u32) -> Option<Self> {
        let add = |held: u32| held.checked_add(count).filter(|held| max == 0 || *held <= max);
        let counted = address.counter(counter);
        counted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok()?;
        Some(Self { address, counter, count })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.address.counter(self.counter).fetch_sub(self.count, Ordering::Relaxed);
        self.address.seen.store(unix_now(), Ordering::Relaxed);
    }
}

/// A query that may take long, from its being asked to its answer.
pub struct LongQuery(Held);

impl LongQuery {
    /// Waits until no other one of its address is being read from the store.
    pub async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        let turn = self.0.address.turn.get_or_init(|| Arc::new(Semaphore::new(1))).clone();
        turn.acquire_owned().await.ok()
    }
}

/// The bounds of one connection, and of the address that it comes from.
pub struct ClientRates {
    config: RatesConfig,
    messages: Bucket,
    bytes: Bucket,
    patience: DefaultDirectRateLimiter,
    connection: Held,
}

impl ClientRates {
    /// To be asked for every message, before it is parsed.
    ///
    /// # Errors
    /// When it is one too many, or its bytes are.
    pub fn message(&self, bytes: usize) -> Result<(), RateLimited> {
        let (config, address) = (&self.config, &self.connection.address);
        let refused = if !spend(&self.messages, 1) {
            limited("messages_per_s", config.messages_per_s)
        } else if !spend(&self.bytes, bytes) {
            limited("bytes_per_s", config.bytes_per_s)
        } else if !spend(&address.messages, 1) {
            limited("messages_per_s_per_ip", config.messages_per_s_per_ip)
        } else if !spend(&address.bytes, bytes) {
            limited("bytes_per_s_per_ip", config.bytes_per_s_per_ip)
        } else {
            return Ok(());
        };
        Err(self.refused(refused))
    }

    /// To be asked for every EVENT, beside [`Self::message`].
    ///
    /// # Errors
    /// When its address publishes too many.
    pub fn event(&self) -> Result<(), RateLimited> {
        let max = self.config.events_per_minute_per_ip;
        if spend(&self.connection.address.events, 1) {
            return Ok(());
        }
        Err(self.refused(limited("events_per_minute_per_ip", max)))
    }

    /// To be asked for every REQ; the answer is kept as long as the subscription is open.
    ///
    /// # Errors
    /// When its address has too many open, or too many filters in them.
    pub fn subscribe(&self, filters: usize) -> Result<[Held; 2], RateLimited> {
        let (config, address) = (&self.config, &self.connection.address);
        let take = |counter, count, max| Held::take(address.clone(), counter, count, max);
        let max = config.subscriptions_per_ip;
        let subscription = take(Counter::Subscriptions, 1, max)
            .ok_or_else(|| self.refused(limited("subscriptions_per_ip", max)))?;
        let (count, max) = (u32::try_from(filters).unwrap_or(u32::MAX), config.filters_per_ip);
        let filters = take(Counter::Filters, count, max)
            .ok_or_else(|| self.refused(limited("filters_per_ip", max)))?;
        Ok([subscription, filters])
    }

    /// To be asked for every COUNT and NEG-OPEN.
    ///
    /// # Errors
    /// When its address has too many that are not answered.
    pub fn long_query(&self) -> Result<LongQuery, RateLimited> {
        let address = self.connection.address.clone();
        let held = Held::take(address, Counter::LongQueries, 1, MAX_LONG_QUERIES);
        held.map(LongQuery).ok_or_else(|| {
            let text = format!(
                "more than {MAX_LONG_QUERIES} counts and reconciliations of your address at once"
            );
            self.refused(Reason::new(Prefix::RateLimited, text))
        })
    }

    /// What all reconciliations of its address share of the room for them, `size` in all.
    pub fn sync_room(&self, size: usize) -> Arc<Semaphore> {
        let room = &self.connection.address.sync_room;
        room.get_or_init(|| Arc::new(Semaphore::new(size))).clone()
    }

    fn refused(&self, reason: Reason) -> RateLimited {
        RateLimited { reason, flooding: self.patience.check().is_err() }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn none() -> RatesConfig {
        RatesConfig {
            connections_per_ip: 0,
            subscriptions_per_ip: 0,
            filters_per_ip: 0,
            messages_per_s: 0,
            bytes_per_s: 0,
            messages_per_s_per_ip: 0,
            bytes_per_s_per_ip: 0,
            events_per_minute_per_ip: 0,
            burst_s: 1,
        }
    }

    /// How many messages in a row pass.
    fn passing(client: &ClientRates, bytes: usize) -> usize {
        (0..10_000).take_while(|_| client.message(bytes).is_ok()).count()
    }

    #[test]
    fn zero_is_no_bound() {
        let rates = Rates::new(none());
        let client = rates.connect(ip("203.0.113.7")).unwrap();
        assert_eq!(passing(&client, 1 << 20), 10_000);
        let held: Vec<_> = (0..5_000).map(|_| client.subscribe(50).unwrap()).collect();
        assert_eq!(held.len(), 5_000);
        assert!((0..5_000).all(|_| client.event().is_ok()));
        assert!((0..5_000).all(|_| rates.request(ip("203.0.113.7")).is_ok()));
    }

    #[test]
    fn a_burst_passes_and_what_is_beyond_it_does_not() {
        let rates = Rates::new(RatesConfig { messages_per_s: 1, burst_s: 20, ..none() });
        let client = rates.connect(ip("203.0.113.7")).unwrap();
        assert_eq!(passing(&client, 10), 20);
        let limited = client.message(10).unwrap_err();
        let text = "rate-limited: more than 1 (rates.messages_per_s)";
        assert_eq!(limited.reason.to_string(), text);
        // Another connection has a bucket of its own.
        assert_eq!(passing(&rates.connect(ip("203.0.113.7")).unwrap(), 10), 20);

        let rates = Rates::new(RatesConfig { bytes_per_s: 1_000, burst_s: 5, ..none() });
        let client = rates.connect(ip("203.0.113.7")).unwrap();
        assert_eq!(passing(&client, 1_000), 5);
        assert!(client.message(5_001).is_err(), "more than the bucket ever holds");
    }

    #[test]
    fn an_address_has_bounds_over_all_its_connections() {
        let config = RatesConfig { messages_per_s_per_ip: 1, burst_s: 20, ..none() };
        let rates = Rates::new(config);
        let (one, two) =
            (rates.connect(ip("2001:db8::1")).unwrap(), rates.connect(ip("2001:db8::2")).unwrap());
        assert_eq!(passing(&one, 1) + passing(&two, 1), 20, "one /64 is one address");
        assert!(rates.request(ip("2001:db8::3")).is_err());
        assert_eq!(passing(&rates.connect(ip("2001:db8:0:1::1")).unwrap(), 1), 20);

        let rates = Rates::new(RatesConfig { events_per_minute_per_ip: 3, ..none() });
        let client = rates.connect(ip("203.0.113.7")).unwrap();
        assert_eq!((0..10).filter(|_| client.event().is_ok()).count(), 3);
        // Going away and coming back does not fill the bucket.
        drop(client);
        assert!(rates.connect(ip("203.0.113.7")).unwrap().event().is_err());
    }

    #[test]
    fn what_is_open_is_counted_and_given_back() {
        let config = RatesConfig {
            connections_per_ip: 2,
            subscriptions_per_ip: 3,
            filters_per_ip: 10,
            ..none()
        };
        let rates = Rates::new(config);
        let address = ip("203.0.113.7");
        let one = rates.connect(address).unwrap();
        let two = rates.connect(address).unwrap();
        let third = rates.connect(address).err().unwrap().to_string();
        assert_eq!(third, "rate-limited: more than 2 (rates.connections_per_ip)");
        assert!(rates.connect(ip("203.0.113.8")).is_ok());

        let a = one.subscribe(8).unwrap();
        assert!(two.subscribe(3).is_err(), "eleven filters");
        let _b = two.subscribe(1).unwrap();
        let _c = two.subscribe(1).unwrap();
        assert!(one.subscribe(0).is_err(), "a fourth subscription");
        drop(a);
        assert!(one.subscribe(8).is_ok());
        drop(two);
        assert!(rates.connect(address).is_ok());

        let sockets: Vec<_> = (0..100).map_while(|_| rates.socket(address)).collect();
        assert_eq!(sockets.len(), 2 + SPARE_SOCKETS as usize);
    }

    #[tokio::test]
    async fn an_address_asks_one_long_query_at_a_time() {
        let rates = Rates::new(none());
        let (one, two) =
            (rates.connect(ip("2001:db8::1")).unwrap(), rates.connect(ip("2001:db8::2")).unwrap());
        let (a, b) = (one.long_query().unwrap(), two.long_query().unwrap());
        let turn = a.turn().await;
        assert!(b.turn().now_or_never().is_none(), "one /64 is one address");
        let elsewhere = rates.connect(ip("203.0.113.7")).unwrap().long_query().unwrap();
        assert!(elsewhere.turn().now_or_never().is_some());
        drop(turn);
        assert!(b.turn().now_or_never().is_some());

        let waiting: Vec<_> = (2..MAX_LONG_QUERIES).map(|_| one.long_query().unwrap()).collect();
        let refused = two.long_query().err().unwrap().reason.to_string();
        assert!(refused.starts_with("rate-limited: "), "{refused}");
        drop(waiting);
        assert!(two.long_query().is_ok());
    }

    #[test]
    fn only_who_goes_on_and_on_is_flooding() {
        let rates = Rates::new(RatesConfig { messages_per_s: 1, ..none() });
        let client = rates.connect(ip("203.0.113.7")).unwrap();
        client.message(1).unwrap();
        let flooding = (1..).find(|_| client.message(1).is_err_and(|limited| limited.flooding));
        assert!(flooding.unwrap() > PATIENCE.get());
        let other = rates.connect(ip("203.0.113.7")).unwrap();
        other.message(1).unwrap();
        assert!(!other.message(1).unwrap_err().flooding);
    }

    #[test]
    fn idle_addresses_are_forgotten_and_open_ones_are_not() {
        let rates = Rates::new(RatesConfig { events_per_minute_per_ip: 1, ..none() });
        let open = rates.connect(ip("203.0.113.7")).unwrap();
        open.event().unwrap();
        for n in 0..3 * MAX_IDLE as u32 {
            let address = std::net::Ipv4Addr::from(0x0a00_0000 + n);
            rates.request(address.into()).unwrap();
            assert!(rates.lock().len() <= MAX_IDLE + 1);
        }
        assert!(rates.connect(ip("203.0.113.7")).unwrap().event().is_err());
    }
}
