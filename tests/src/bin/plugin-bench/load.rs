//! Clients that publish, and note how long each answer took.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use nostr_gateway_tests::events;
use nostr_sdk::Keys;
use tokio::{
    net::TcpStream,
    sync::{Semaphore, mpsc},
    time::{Instant, sleep_until, timeout},
};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

pub type Socket = WebSocketStream<TcpStream>;

/// How long an answer may take; a gateway that is silent for longer fails the row.
const SILENCE: Duration = Duration::from_secs(60);

/// Signed events, as EVENT messages.
#[derive(Clone)]
pub struct Frames(Arc<Vec<(String, String)>>);

impl Frames {
    /// Signs on all cores. Notes without a content of their own are about as long as those of
    /// people: 570 bytes of JSON.
    pub fn sign(count: usize, kind: u16, content: Option<&str>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let share = count.div_ceil(cores).max(1);
        let sign = |first: usize| -> Vec<(String, String)> {
            let keys = Keys::generate();
            let now = events::now();
            (first..count.min(first + share))
                .map(|n| {
                    let long = || format!("{n} {}", "lorem ipsum dolor sit amet ".repeat(8));
                    let text = content.map_or_else(long, str::to_owned);
                    // What is said again and again is told apart by its time.
                    let event = events::event(&keys, kind, &text, &[], now - n as u64);
                    (event.id.to_hex(), format!(r#"["EVENT",{}]"#, events::json(&event)))
                })
                .collect()
        };
        let signed = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..count).step_by(share).map(|first| scope.spawn(move || sign(first))).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        Self(Arc::new(signed))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

pub async fn connect(url: &str) -> Socket {
    let address = url.strip_prefix("ws://").unwrap().split('/').next().unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    tokio_tungstenite::client_async(url, stream).await.unwrap().0
}

/// The id and the verdict of an OK.
fn parse_ok(text: &str) -> Option<(&str, bool)> {
    let rest = text.strip_prefix(r#"["OK",""#)?;
    let (id, rest) = rest.split_once('"')?;
    Some((id, rest.starts_with(",true")))
}

/// Publishes `step`th frames from `first` on as fast as `in_flight` without an OK allow. All must be
/// accepted.
pub async fn flood(url: String, frames: Frames, first: usize, step: usize, in_flight: usize) {
    let (mut sink, mut stream) = connect(&url).await.split();
    let free = Arc::new(Semaphore::new(in_flight));
    let mine: Vec<usize> = (first..frames.len()).step_by(step).collect();
    let count = mine.len();
    let sending = async {
        for at in mine {
            if free.available_permits() == 0 {
                sink.flush().await.unwrap();
            }
            free.acquire().await.unwrap().forget();
            sink.feed(Message::text(frames.0[at].1.clone())).await.unwrap();
        }
        sink.flush().await.unwrap();
    };
    let reading = async {
        for _ in 0..count {
            let text = next_text(&mut stream).await;
            assert!(parse_ok(&text).is_some_and(|(_, accepted)| accepted), "{text}");
            free.add_permits(1);
        }
    };
    tokio::join!(sending, reading);
}

/// Ends what goes on until it is told to stop. Clones are the same.
#[derive(Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// One event: when it was sent, and how long its answer took.
#[derive(Clone, Copy)]
pub struct Answered {
    pub at: Instant,
    pub took: Duration,
}

/// Publishes so many a second until told to stop, or until there are no more. Each must be answered
/// with `accepted`.
pub async fn steady(
    url: String,
    frames: Frames,
    rate: f64,
    accepted: bool,
    stop: Stop,
) -> Vec<Answered> {
    let (sink, stream) = connect(&url).await.split();
    let (sent, notes) = mpsc::unbounded_channel();
    let reading = tokio::spawn(answers(stream, notes, accepted));
    send(sink, frames, rate, sent, stop).await;
    reading.await.unwrap()
}

async fn send(
    mut sink: SplitSink<Socket, Message>,
    frames: Frames,
    rate: f64,
    sent: mpsc::UnboundedSender<(String, Instant)>,
    stop: Stop,
) {
    let start = Instant::now();
    for (n, (id, frame)) in frames.0.iter().enumerate() {
        if stop.is_set() {
            break;
        }
        sleep_until(start + Duration::from_secs_f64(n as f64 / rate)).await;
        // Before the event itself, so that its answer finds the note.
        sent.send((id.clone(), Instant::now())).unwrap();
        sink.send(Message::text(frame.clone())).await.unwrap();
    }
    drop(sent);
    // The socket closes with its other half.
}

async fn answers(
    mut stream: SplitStream<Socket>,
    mut notes: mpsc::UnboundedReceiver<(String, Instant)>,
    wanted: bool,
) -> Vec<Answered> {
    let mut open: HashMap<String, Instant> = HashMap::new();
    let mut done = Vec::new();
    loop {
        if open.is_empty() {
            match notes.recv().await {
                Some((id, at)) => drop(open.insert(id, at)),
                None => return done,
            }
        }
        let text = next_text(&mut stream).await;
        let now = Instant::now();
        while let Ok((id, at)) = notes.try_recv() {
            open.insert(id, at);
        }
        let (id, accepted) = parse_ok(&text).unwrap_or_else(|| panic!("{text}"));
        assert_eq!(accepted, wanted, "{text}");
        let at = open.remove(id).expect("an answer to what was sent");
        done.push(Answered { at, took: now - at });
    }
}

async fn next_text(stream: &mut SplitStream<Socket>) -> String {
    loop {
        let message = timeout(SILENCE, stream.next()).await.expect("the gateway answers");
        if let Message::Text(text) = message.expect("the gateway stays").unwrap() {
            return text.to_string();
        }
    }
}

/// Publishes one event after the other; returns how long each answer took.
pub async fn one_by_one(socket: &mut Socket, frame: &str) -> (Duration, String) {
    let began = Instant::now();
    socket.send(Message::text(frame)).await.unwrap();
    loop {
        let message = timeout(SILENCE, socket.next()).await.expect("the gateway answers");
        if let Message::Text(text) = message.expect("the gateway stays").unwrap() {
            return (began.elapsed(), text.to_string());
        }
    }
}

/// An event as an EVENT message.
pub fn frame(kind: u16, content: &str) -> String {
    let event = events::event(&Keys::generate(), kind, content, &[], events::now());
    format!(r#"["EVENT",{}]"#, events::json(&event))
}

/// The answers' times, sorted, in milliseconds.
pub struct Times(Vec<f64>);

impl Times {
    pub fn of(answers: impl IntoIterator<Item = Answered>) -> Self {
        let mut times: Vec<_> =
            answers.into_iter().map(|answer| answer.took.as_secs_f64() * 1e3).collect();
        times.sort_by(f64::total_cmp);
        Self(times)
    }

    /// `share` between 0 and 1.
    pub fn percentile(&self, share: f64) -> f64 {
        let Some(last) = self.0.len().checked_sub(1) else { return f64::NAN };
        self.0[(last as f64 * share).round() as usize]
    }

    pub fn longest(&self) -> f64 {
        self.percentile(1.0)
    }
}
