//! Why a connection to a relay did not come about, or ended.

use std::time::Duration;

/// What went wrong with a link. The texts are for status and logs: they hold no content of events.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    #[error("{0}")]
    Url(String),
    /// No address, no TCP connection or no TLS.
    #[error("{0}")]
    Unreachable(String),
    /// The name leads to an address that a URL of a stranger must not lead to.
    #[error("{0} is a private address")]
    PrivateAddress(String),
    /// The relay answered the request for a websocket with something else.
    #[error("HTTP {status}{}", place(.location))]
    Http { status: u16, retry_after: Option<Duration>, location: Option<String> },
    /// It did not answer in time.
    #[error("no {what} within {} s", .after.as_secs())]
    Slow { what: &'static str, after: Duration },
    /// The connection ended, by the relay or on the way.
    #[error("{0}")]
    Ended(String),
    /// We ended it, because of what the relay sent.
    #[error("{0}")]
    Misbehaved(String),
    /// All subscriptions that the relay allows are in use.
    #[error("all {0} subscriptions that the relay allows are in use")]
    Busy(usize),
    #[error("the message has {bytes} bytes, and the relay takes {max} (max_message_length)")]
    TooLong { bytes: usize, max: usize },
    #[error("{filters} filters, and the relay takes {max} (max_filters)")]
    TooManyFilters { filters: usize, max: usize },
    /// This side closed it.
    #[error("closed here")]
    ClosedHere,
}

fn place(location: &Option<String>) -> String {
    match location {
        Some(location) => format!("; the relay says that it is at {location}: change `urls` then"),
        None => String::new(),
    }
}

/// Why a reconciliation ended (NIP-77).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NegError {
    /// NEG-ERR or CLOSED, with the relay's reason.
    #[error("refused: {0}")]
    Refused(String),
    /// It answered NEG-OPEN with nothing but a NOTICE: it does not know NIP-77.
    #[error("answered with a notice: {0}")]
    Notice(String),
    #[error("no answer within {} s", .0.as_secs())]
    Silent(Duration),
    #[error(transparent)]
    Link(#[from] LinkError),
}
