//! What can happen at a node.

use std::time::Duration;

use iroh::EndpointId;
use iroh_gossip::proto::{Message, Timer};

use crate::{gossip::fetch::schedule::Job, protocol::EventId};

/// What happens at a node.
pub enum Happening {
    Dial {
        peer: usize,
        since: Duration,
    },
    Dialed {
        peer: usize,
        conn: usize,
    },
    Accepted {
        peer: usize,
        conn: usize,
    },
    Closed {
        conn: usize,
    },
    Idle {
        conn: usize,
    },
    Message {
        from: usize,
        conn: usize,
        message: Message<EndpointId>,
    },
    Timer(Timer<EndpointId>),
    /// Once a second: the joiner looks for answers, discovery whether a record is due.
    Tick,
    Configured {
        number: u64,
    },
    Look {
        number: u64,
    },
    Looked {
        number: u64,
        minute: u64,
    },
    Publish {
        minute: u64,
    },
    Knock {
        peer: usize,
        forget: bool,
        since: Duration,
    },
    HandOver {
        peer: usize,
        conn: usize,
    },
    Send,
    Answered {
        job: Box<Job>,
        wanted: Vec<EventId>,
    },
    Fetch,
    Compare,
    Greets {
        peer: usize,
    },
    Led {
        peer: usize,
        need: Option<Vec<EventId>>,
    },
    Followed {
        by: usize,
        need: Vec<EventId>,
    },
    Hinted {
        by: usize,
    },
}

impl Happening {
    pub const fn number(&self) -> u64 {
        match self {
            Self::Dial { .. } => 1,
            Self::Dialed { .. } => 2,
            Self::Accepted { .. } => 3,
            Self::Closed { .. } => 4,
            Self::Idle { .. } => 5,
            Self::Message { .. } => 6,
            Self::Timer(_) => 7,
            Self::Tick => 8,
            Self::Configured { .. } => 9,
            Self::Look { .. } => 10,
            Self::Looked { .. } => 11,
            Self::Publish { .. } => 12,
            Self::Knock { .. } => 13,
            Self::HandOver { .. } => 14,
            Self::Send => 15,
            Self::Answered { .. } => 16,
            Self::Fetch => 17,
            Self::Compare => 18,
            Self::Greets { .. } => 19,
            Self::Led { .. } => 20,
            Self::Followed { .. } => 21,
            Self::Hinted { .. } => 22,
        }
    }
}
