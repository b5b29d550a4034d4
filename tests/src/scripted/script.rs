//! What a scripted relay does.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// One relay's behaviour. The default is a plain and honest relay without NIP-77.
#[derive(Clone)]
pub struct Script {
    pub document: Document,
    pub door: Door,
    pub req: OnReq,
    pub neg: OnNeg,
    pub event: OnEvent,
    /// Who must authenticate (NIP-42), and for what.
    pub auth: Auth,
    /// The most events that one REQ brings, whatever it asks for.
    pub max_limit: usize,
    /// Before each answer.
    pub delay: Duration,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            document: Document::Json(json!({"name": "scripted", "supported_nips": [1, 11]})),
            door: Door::Open,
            req: OnReq::Serve,
            neg: OnNeg::Notice("unknown message".to_owned()),
            event: OnEvent::Store,
            auth: Auth::default(),
            max_limit: 500,
            delay: Duration::ZERO,
        }
    }
}

impl Script {
    /// Claims NIP-77 and has it.
    pub fn with_negentropy() -> Self {
        Self { document: claiming_negentropy(), neg: OnNeg::Serve, ..Self::default() }
    }

    /// Claims NIP-77 and does this.
    pub fn lying_about_negentropy(neg: OnNeg) -> Self {
        Self { document: claiming_negentropy(), neg, ..Self::default() }
    }

    pub fn on_req(req: OnReq) -> Self {
        Self { req, ..Self::default() }
    }

    pub fn on_event(event: OnEvent) -> Self {
        Self { event, ..Self::default() }
    }

    /// Says these `limitation` in its document (NIP-11).
    pub fn limits(mut self, limitation: Value) -> Self {
        self.document = Document::Json(
            json!({"name": "scripted", "supported_nips": [1, 11], "limitation": limitation}),
        );
        self
    }
}

fn claiming_negentropy() -> Document {
    Document::Json(json!({"name": "scripted", "supported_nips": [1, 11, 77]}))
}

/// The answer to a GET (NIP-11).
#[derive(Clone)]
pub enum Document {
    /// 404.
    None,
    Json(Value),
    /// 200 with this text.
    Text(String),
    /// 200, and bytes for ever.
    Endless,
    /// Nothing; the connection stays open.
    Silent,
}

/// What a connection meets before its first message.
#[derive(Clone)]
pub enum Door {
    Open,
    /// Accepted, and never upgraded.
    Silent,
    /// Closed as soon as it is there.
    HangUp,
    /// Upgraded, and closed after this time.
    CloseAfter(Duration),
    /// Refused with this HTTP status.
    Refuse(u16),
}

/// The answer to a REQ.
#[derive(Clone)]
pub enum OnReq {
    Serve,
    Silence,
    Closed(String),
    /// A notice in place of an answer.
    Notice(String),
    /// What is held, without EOSE, and nothing live.
    NoEose,
    /// Events that nobody has signed like this, then EOSE.
    Forged(usize),
    /// Events that were not asked for (kind 4242), then EOSE.
    Unasked(usize),
    /// Ever new events, one after each pause, and never EOSE.
    Endless(Duration),
    /// What is held and EOSE, for another subscription.
    WrongSubscription,
    /// The newest page, whatever `until` says.
    SamePage,
    /// A binary message, then an honest answer.
    Binary,
    /// A text message of so many bytes.
    Oversize(usize),
    /// This text.
    Garbage(String),
}

/// The answer to a NEG-OPEN (NIP-77).
#[derive(Clone)]
pub enum OnNeg {
    Serve,
    Silence,
    Notice(String),
    /// NEG-ERR with this reason.
    Error(String),
    /// CLOSED with this reason, as relays answer to what they take for a REQ.
    Closed(String),
    /// NEG-MSG with this in place of a message.
    Garbage(String),
    /// NEG-MSG that says again what it was told, for ever.
    Echo,
}

/// The answer to an EVENT.
#[derive(Clone)]
pub enum OnEvent {
    Store,
    /// OK false with this message.
    Refuse(String),
    /// Stored, and no OK.
    Silence,
    /// Stored, and each OK three times.
    Thrice,
    /// OK false `rate-limited:` until then.
    RateLimitedUntil(Instant),
    /// OK true `duplicate:`, and not stored.
    Duplicate,
}

/// For what a connection has to be authenticated (NIP-42).
#[derive(Clone, Copy, Default)]
pub struct Auth {
    pub to_read: bool,
    pub to_write: bool,
}

impl Auth {
    pub fn is_asked(self) -> bool {
        self.to_read || self.to_write
    }
}
