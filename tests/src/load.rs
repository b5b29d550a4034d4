//! Clients: writers at a steady rate, and listeners that note when each event came.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::events;
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use nostr_sdk::Keys;
use tokio::{
    net::TcpStream,
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

type Socket = WebSocketStream<TcpStream>;

/// How long an answer may take; a gateway that is silent for longer fails the row.
const SILENCE: Duration = Duration::from_secs(60);

/// Signed notes, as EVENT messages, and when each was sent.
pub struct Notes {
    frames: Vec<String>,
    by_id: HashMap<String, usize>,
    /// Nanoseconds since `epoch`; zero for what was not sent.
    sent: Vec<AtomicU64>,
    epoch: Instant,
    /// All events together, in bytes of JSON.
    pub bytes: u64,
}

impl Notes {
    /// Signs on all cores. The notes are about as long as those of people: 570 bytes of JSON.
    pub fn sign(count: usize) -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let share = count.div_ceil(cores).max(1);
        let sign = |first: usize| -> Vec<(String, String)> {
            let keys = Keys::generate();
            let now = events::now();
            (first..count.min(first + share))
                .map(|n| {
                    let text = format!("{n} {}", "lorem ipsum dolor sit amet ".repeat(8));
                    let event = events::event(&keys, 1, &text, &[], now - 600 + (n % 600) as u64);
                    (event.id.to_hex(), format!(r#"["EVENT",{}]"#, events::json(&event)))
                })
                .collect()
        };
        let signed: Vec<(String, String)> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..count).step_by(share).map(|first| scope.spawn(move || sign(first))).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        let by_id = signed.iter().enumerate().map(|(at, (id, _))| (id.clone(), at)).collect();
        let frames: Vec<String> = signed.into_iter().map(|(_, frame)| frame).collect();
        let around = r#"["EVENT",]"#.len();
        let bytes = frames.iter().map(|frame| (frame.len() - around) as u64).sum();
        let sent = (0..count).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self { frames, by_id, sent, epoch: Instant::now(), bytes })
    }

    pub fn count(&self) -> usize {
        self.frames.len()
    }

    fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    fn at(&self, when: Instant) -> u64 {
        when.saturating_duration_since(self.epoch).as_nanos() as u64
    }
}

async fn connect(url: &str) -> Socket {
    let address = url.strip_prefix("ws://").unwrap().split('/').next().unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    tokio_tungstenite::client_async(url, stream).await.unwrap().0
}

/// Publishes each `step`th note from `first` on, `rate` a second, and waits for the OKs. Without a
/// rate, as fast as 512 without an OK allow.
pub async fn write(url: String, notes: Arc<Notes>, first: usize, step: usize, rate: Option<f64>) {
    let (sink, stream) = connect(&url).await.split();
    let mine: Vec<usize> = (first..notes.count()).step_by(step).collect();
    let acknowledged = Arc::new(tokio::sync::Semaphore::new(512));
    let count = mine.len();
    let sending = send(sink, notes.clone(), mine, rate, acknowledged.clone());
    let (sink, ()) = tokio::join!(sending, accepted(stream, count, acknowledged));
    drop(sink);
}

async fn send(
    mut sink: SplitSink<Socket, Message>,
    notes: Arc<Notes>,
    mine: Vec<usize>,
    rate: Option<f64>,
    acknowledged: Arc<tokio::sync::Semaphore>,
) -> SplitSink<Socket, Message> {
    let start = Instant::now();
    for (n, at) in mine.into_iter().enumerate() {
        match rate {
            Some(rate) => {
                let due = start + Duration::from_secs_f64(n as f64 / rate);
                if due > Instant::now() {
                    sink.flush().await.unwrap();
                    sleep_until(due).await;
                }
            }
            None => {
                if acknowledged.available_permits() == 0 {
                    sink.flush().await.unwrap();
                }
                acknowledged.acquire().await.unwrap().forget();
            }
        }
        notes.sent[at].store(notes.now(), Ordering::Relaxed);
        sink.feed(Message::text(notes.frames[at].clone())).await.unwrap();
    }
    sink.flush().await.unwrap();
    sink
}

async fn accepted(
    mut stream: SplitStream<Socket>,
    count: usize,
    acknowledged: Arc<tokio::sync::Semaphore>,
) {
    let mut accepted = 0;
    while accepted < count {
        let message = timeout(SILENCE, stream.next()).await.expect("the gateway answers");
        let Message::Text(text) = message.expect("the gateway stays").unwrap() else { continue };
        assert!(text.starts_with(r#"["OK","#) && text.contains(",true,"), "{text}");
        accepted += 1;
        acknowledged.add_permits(1);
    }
}

/// A client that subscribes to everything new.
pub struct Listener {
    /// When each note came, in nanoseconds since the notes' epoch; zero for what did not.
    came: Arc<Vec<AtomicU64>>,
    notes: Arc<Notes>,
    task: JoinHandle<()>,
}

impl Listener {
    pub async fn start(url: &str, notes: &Arc<Notes>) -> Self {
        let mut socket = connect(url).await;
        socket.send(Message::text(r#"["REQ","live",{"limit":0}]"#)).await.unwrap();
        loop {
            let message = timeout(SILENCE, socket.next()).await.expect("EOSE").unwrap().unwrap();
            if message.to_text().is_ok_and(|text| text.starts_with(r#"["EOSE""#)) {
                break;
            }
        }
        let came: Arc<Vec<AtomicU64>> =
            Arc::new((0..notes.count()).map(|_| AtomicU64::new(0)).collect());
        let task = tokio::spawn(listen(socket, notes.clone(), came.clone()));
        Self { came, notes: notes.clone(), task }
    }

    /// How long each note took that was sent within this time, sorted, in milliseconds. What did not
    /// come counts in the second value.
    pub fn latencies(&self, from: Instant, until: Instant) -> (Vec<f64>, usize) {
        let span = self.notes.at(from)..self.notes.at(until);
        let (mut took, mut missing) = (Vec::new(), 0);
        for (sent, came) in self.notes.sent.iter().zip(self.came.iter()) {
            let (sent, came) = (sent.load(Ordering::Relaxed), came.load(Ordering::Relaxed));
            if sent == 0 || !span.contains(&sent) {
                continue;
            }
            match came {
                0 => missing += 1,
                came => took.push(came.saturating_sub(sent) as f64 / 1e6),
            }
        }
        (took, missing)
    }

    /// How much later than at another listener each note came, sorted, in milliseconds. What did not
    /// come at both counts in the second value.
    pub fn behind(&self, other: &Self) -> (Vec<f64>, usize) {
        let both = self.came.iter().zip(other.came.iter());
        let (mut behind, mut missing) = (Vec::new(), 0);
        for (here, there) in both {
            match (here.load(Ordering::Relaxed), there.load(Ordering::Relaxed)) {
                (0, _) | (_, 0) => missing += 1,
                (here, there) => behind.push((here as f64 - there as f64) / 1e6),
            }
        }
        behind.sort_by(f64::total_cmp);
        (behind, missing)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(mut socket: Socket, notes: Arc<Notes>, came: Arc<Vec<AtomicU64>>) {
    while let Some(Ok(message)) = socket.next().await {
        let now = notes.now();
        let Ok(text) = message.to_text() else { continue };
        // Canonical JSON: the id is the event's first field.
        let Some(at) = text.find(r#""id":""#) else { continue };
        let Some(id) = text.get(at + 6..at + 70) else { continue };
        if let Some(index) = notes.by_id.get(id) {
            let _ = came[*index].compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

/// Latencies of many listeners together.
#[derive(Default)]
pub struct Latencies {
    took: Vec<f64>,
    pub missing: usize,
}

impl Latencies {
    pub fn of<'a>(
        listeners: impl IntoIterator<Item = &'a Listener>,
        from: Instant,
        until: Instant,
    ) -> Self {
        let mut all = Self::default();
        for listener in listeners {
            let (took, missing) = listener.latencies(from, until);
            all.took.extend(took);
            all.missing += missing;
        }
        all.took.sort_by(f64::total_cmp);
        all
    }

    /// In milliseconds; `share` between 0 and 1.
    pub fn percentile(&self, share: f64) -> f64 {
        let Some(last) = self.took.len().checked_sub(1) else { return f64::NAN };
        self.took[(last as f64 * share).round() as usize]
    }
}
