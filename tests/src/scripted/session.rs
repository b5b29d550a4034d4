//! One connection to a scripted relay.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{SinkExt, StreamExt};
use negentropy::{Id, Negentropy, NegentropyStorageVector};
use nostr_sdk::{Event, Filter, JsonUtil, Keys, filter::MatchEventOptions};
use serde_json::{Value, json};
use tokio::{net::TcpStream, sync::broadcast};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

use super::{OnEvent, OnNeg, OnReq, Script, Shared, Stored};
use crate::{
    client::{hex, unhex},
    events,
};

/// Frames of a reconciliation; NIP-77 relays have limits of this size.
const NEG_FRAME: u64 = 60_000;
/// How old an authentication may be (NIP-42), in seconds.
const AUTH_AGE: u64 = 600;

/// The connection has ended.
struct Gone;

pub(super) struct Session {
    socket: WebSocketStream<TcpStream>,
    shared: Arc<Shared>,
    live: broadcast::Receiver<Arc<Stored>>,
    subscriptions: BTreeMap<String, Vec<Filter>>,
    negentropies: HashMap<String, Negentropy<'static, NegentropyStorageVector>>,
    /// Subscriptions that get ever new events.
    endless: BTreeMap<String, Duration>,
    /// How many of those there were.
    made_up: u64,
    keys: Keys,
    challenge: String,
    is_authenticated: bool,
}

impl Session {
    pub fn new(socket: WebSocketStream<TcpStream>, shared: Arc<Shared>) -> Self {
        let keys = Keys::generate();
        Self {
            socket,
            live: shared.live.subscribe(),
            shared,
            subscriptions: BTreeMap::new(),
            negentropies: HashMap::new(),
            endless: BTreeMap::new(),
            made_up: 0,
            challenge: keys.public_key().to_hex(),
            keys,
            is_authenticated: false,
        }
    }

    pub async fn run(mut self) {
        if self.shared.script().auth.is_asked()
            && self.say(&json!(["AUTH", self.challenge])).await.is_err()
        {
            return;
        }
        while self.step().await.is_ok() {}
        // A polite end, where there is still somebody.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.socket.close(None)).await;
    }

    async fn step(&mut self) -> Result<(), Gone> {
        let pause = self.endless.values().min().copied();
        tokio::select! {
            frame = self.socket.next() => match frame {
                Some(Ok(Message::Text(text))) => self.message(text.as_str()).await,
                Some(Ok(Message::Close(_)) | Err(_)) | None => Err(Gone),
                Some(Ok(_)) => Ok(()),
            },
            stored = self.live.recv() => match stored {
                Ok(stored) => self.live(&stored).await,
                Err(_) => Err(Gone),
            },
            () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {
                self.make_up().await
            }
        }
    }

    async fn message(&mut self, text: &str) -> Result<(), Gone> {
        let Ok(message) = serde_json::from_str::<Value>(text) else {
            self.shared.counted.add(|counts| counts.malformed += 1);
            return self.say(&json!(["NOTICE", "error: not JSON"])).await;
        };
        self.shared.counted.message(&message, text.len());
        let script = self.shared.script();
        if !script.delay.is_zero() {
            tokio::time::sleep(script.delay).await;
        }
        let name = message[1].as_str().unwrap_or_default().to_owned();
        match message[0].as_str() {
            Some("REQ") => self.req(name, &message, script).await,
            Some("CLOSE") => {
                self.subscriptions.remove(&name);
                self.endless.remove(&name);
                Ok(())
            }
            Some("EVENT") => self.event(&message[1], script).await,
            Some("AUTH") => self.auth(&message[1]).await,
            Some("NEG-OPEN") => self.neg_open(name, &message, script).await,
            Some("NEG-MSG") => self.neg_message(name, &message, script).await,
            Some("NEG-CLOSE") => {
                self.negentropies.remove(&name);
                Ok(())
            }
            _ => self.say(&json!(["NOTICE", "error: unknown message"])).await,
        }
    }

    async fn req(&mut self, name: String, message: &Value, script: Script) -> Result<(), Gone> {
        if script.auth.to_read && !self.is_authenticated {
            return self.say(&json!(["CLOSED", name, "auth-required: who are you?"])).await;
        }
        let filters = &message.as_array().map_or(&[][..], Vec::as_slice)[2..];
        let filters: Result<Vec<Filter>, _> =
            filters.iter().map(|filter| Filter::from_json(filter.to_string())).collect();
        let Ok(filters) = filters else {
            return self.say(&json!(["CLOSED", name, "invalid: no filter"])).await;
        };
        match script.req {
            OnReq::Serve => self.serve(&name, filters, script.max_limit, true).await,
            OnReq::Silence => Ok(()),
            OnReq::Closed(reason) => self.say(&json!(["CLOSED", name, reason])).await,
            OnReq::Notice(text) => self.say(&json!(["NOTICE", text])).await,
            OnReq::NoEose => self.stored(&name, &filters, script.max_limit).await,
            OnReq::Forged(count) => {
                for n in 0..count {
                    let event = events::note(&self.keys, &format!("signed {n}"));
                    let forged = events::json(&event).replace("signed", "forged");
                    self.tell(&name, &forged).await?;
                }
                self.say(&json!(["EOSE", name])).await
            }
            OnReq::Unasked(count) => {
                for n in 0..count {
                    let event =
                        events::event(&self.keys, 4_242, &n.to_string(), &[], events::now());
                    self.tell(&name, &events::json(&event)).await?;
                }
                self.say(&json!(["EOSE", name])).await
            }
            OnReq::Endless(pause) => {
                self.endless.insert(name, pause);
                Ok(())
            }
            OnReq::WrongSubscription => {
                self.stored("another", &filters, script.max_limit).await?;
                self.say(&json!(["EOSE", "another"])).await
            }
            OnReq::SamePage => {
                let newest = filters.into_iter().map(|filter| filter.remove_until()).collect();
                self.serve(&name, newest, script.max_limit, true).await
            }
            OnReq::Binary => {
                self.send(Message::binary(vec![0; 1_000])).await?;
                self.serve(&name, filters, script.max_limit, true).await
            }
            OnReq::Oversize(bytes) => {
                let text = format!(r#"["EVENT","{name}",{{"content":"{}"}}]"#, "x".repeat(bytes));
                self.send(Message::text(text)).await
            }
            OnReq::Garbage(text) => self.send(Message::text(text)).await,
        }
    }

    /// An honest answer, and from then on what is new.
    async fn serve(
        &mut self,
        name: &str,
        filters: Vec<Filter>,
        limit: usize,
        live: bool,
    ) -> Result<(), Gone> {
        self.stored(name, &filters, limit).await?;
        if live {
            self.subscriptions.insert(name.to_owned(), filters);
            let open = self.subscriptions.len();
            self.shared.counted.add(|counts| counts.subscriptions = counts.subscriptions.max(open));
        }
        self.say(&json!(["EOSE", name])).await
    }

    async fn stored(&mut self, name: &str, filters: &[Filter], limit: usize) -> Result<(), Gone> {
        let found: Vec<Arc<Stored>> = {
            let held = self.shared.held.lock().unwrap();
            filters.iter().flat_map(|filter| held.matching(filter, limit)).collect()
        };
        for stored in found {
            let frame = format!(r#"["EVENT","{name}",{}]"#, stored.json);
            self.socket.feed(Message::text(frame)).await.map_err(|_| Gone)?;
            self.shared.counted.add(|counts| counts.told += 1);
        }
        self.socket.flush().await.map_err(|_| Gone)
    }

    async fn live(&mut self, stored: &Stored) -> Result<(), Gone> {
        let matches = |filters: &Vec<Filter>| {
            filters.iter().any(|f| f.match_event(&stored.event, MatchEventOptions::new()))
        };
        let names: Vec<String> = self
            .subscriptions
            .iter()
            .filter(|(_, filters)| matches(filters))
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            self.tell(&name, &stored.json).await?;
        }
        Ok(())
    }

    /// One more event for each subscription without an end, each older than the one before.
    async fn make_up(&mut self) -> Result<(), Gone> {
        let names: Vec<String> = self.endless.keys().cloned().collect();
        for name in names {
            self.made_up += 1;
            let at = events::now() - self.made_up;
            let event = events::event(&self.keys, 1, "and another one", &[], at);
            self.tell(&name, &events::json(&event)).await?;
        }
        Ok(())
    }

    async fn event(&mut self, event: &Value, script: Script) -> Result<(), Gone> {
        let Ok(event) = Event::from_json(event.to_string()) else {
            return self.say(&json!(["NOTICE", "invalid: no event"])).await;
        };
        let id = event.id.to_hex();
        if script.auth.to_write && !self.is_authenticated {
            return self.say(&json!(["OK", id, false, "auth-required: who are you?"])).await;
        }
        if event.verify().is_err() {
            return self.say(&json!(["OK", id, false, "invalid: forged"])).await;
        }
        let refusal = match &script.event {
            OnEvent::Refuse(reason) => Some(reason.clone()),
            OnEvent::RateLimitedUntil(end) if Instant::now() < *end => {
                Some("rate-limited: slow down".to_owned())
            }
            _ => None,
        };
        if let Some(reason) = refusal {
            return self.say(&json!(["OK", id, false, reason])).await;
        }
        if matches!(script.event, OnEvent::Duplicate) {
            return self.say(&json!(["OK", id, true, "duplicate: have it"])).await;
        }
        let is_new = self.shared.take(&event);
        let message = if is_new { "" } else { "duplicate: have it" };
        let times = match script.event {
            OnEvent::Silence => 0,
            OnEvent::Thrice => 3,
            _ => 1,
        };
        for _ in 0..times {
            self.say(&json!(["OK", id, true, message])).await?;
        }
        Ok(())
    }

    async fn auth(&mut self, event: &Value) -> Result<(), Gone> {
        let id = event["id"].clone();
        match self.is_authentic(event) {
            Ok(key) => {
                self.is_authenticated = true;
                self.shared.counted.add(|counts| counts.authenticated.push(key));
                self.say(&json!(["OK", id, true, ""])).await
            }
            Err(why) => {
                self.shared.counted.add(|counts| counts.wrong_auths.push(why.to_owned()));
                self.say(&json!(["OK", id, false, format!("invalid: {why}")])).await
            }
        }
    }

    /// As NIP-42 says it: kind, signature, challenge, relay and time.
    fn is_authentic(&self, event: &Value) -> Result<String, &'static str> {
        let event = Event::from_json(event.to_string()).map_err(|_| "no event")?;
        event.verify().map_err(|_| "forged")?;
        let tag = |name: &str| {
            let mut tags = event.tags.iter().map(|tag| tag.as_slice());
            tags.find(|tag| tag[0] == name).and_then(|tag| tag.get(1).cloned()).unwrap_or_default()
        };
        if event.kind.as_u16() != 22_242 {
            return Err("wrong kind");
        }
        if tag("challenge") != self.challenge {
            return Err("wrong challenge");
        }
        if tag("relay").trim_end_matches('/') != self.shared.url() {
            return Err("wrong relay");
        }
        if events::now().abs_diff(event.created_at.as_secs()) > AUTH_AGE {
            return Err("wrong time");
        }
        Ok(event.pubkey.to_hex())
    }

    async fn neg_open(
        &mut self,
        name: String,
        message: &Value,
        script: Script,
    ) -> Result<(), Gone> {
        match script.neg {
            OnNeg::Serve => {}
            OnNeg::Silence => return Ok(()),
            OnNeg::Notice(text) => return self.say(&json!(["NOTICE", text])).await,
            OnNeg::Error(reason) => return self.say(&json!(["NEG-ERR", name, reason])).await,
            OnNeg::Closed(reason) => return self.say(&json!(["CLOSED", name, reason])).await,
            OnNeg::Garbage(text) => return self.say(&json!(["NEG-MSG", name, text])).await,
            OnNeg::Echo => return self.say(&json!(["NEG-MSG", name, message[3]])).await,
        }
        let Ok(filter) = Filter::from_json(message[2].to_string()) else {
            return self.say(&json!(["NEG-ERR", name, "invalid: no filter"])).await;
        };
        let mut storage = NegentropyStorageVector::new();
        for stored in self.shared.held.lock().unwrap().matching(&filter, usize::MAX) {
            let id = Id::from_byte_array(stored.event.id.to_bytes());
            storage.insert(stored.event.created_at.as_secs(), id).unwrap();
        }
        storage.seal().unwrap();
        self.negentropies.insert(name.clone(), Negentropy::owned(storage, NEG_FRAME).unwrap());
        self.reconcile(name, message[3].as_str().unwrap_or_default()).await
    }

    async fn neg_message(
        &mut self,
        name: String,
        message: &Value,
        script: Script,
    ) -> Result<(), Gone> {
        match script.neg {
            OnNeg::Serve => self.reconcile(name, message[2].as_str().unwrap_or_default()).await,
            OnNeg::Echo => self.say(&json!(["NEG-MSG", name, message[2]])).await,
            _ => Ok(()),
        }
    }

    async fn reconcile(&mut self, name: String, said: &str) -> Result<(), Gone> {
        let Some(negentropy) = self.negentropies.get_mut(&name) else {
            return self.say(&json!(["NEG-ERR", name, "closed: not open"])).await;
        };
        match negentropy.reconcile(&unhex(said)) {
            Ok(answer) => self.say(&json!(["NEG-MSG", name, hex(&answer)])).await,
            Err(error) => self.say(&json!(["NEG-ERR", name, format!("invalid: {error}")])).await,
        }
    }

    /// An event for a subscription.
    async fn tell(&mut self, name: &str, json: &str) -> Result<(), Gone> {
        self.send(Message::text(format!(r#"["EVENT","{name}",{json}]"#))).await?;
        self.shared.counted.add(|counts| counts.told += 1);
        Ok(())
    }

    async fn say(&mut self, message: &Value) -> Result<(), Gone> {
        self.send(Message::text(message.to_string())).await
    }

    async fn send(&mut self, message: Message) -> Result<(), Gone> {
        self.socket.send(message).await.map_err(|_| Gone)
    }
}
