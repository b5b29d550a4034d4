//! Reads the EVENT messages to publish from the file they are kept in, as they are needed: a million
//! of them would fill the memory that the relay shares.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    path::Path,
};

use tokio_tungstenite::tungstenite::Utf8Bytes;

/// An open set. The connections take from it in turn.
pub struct Frames(BufReader<File>);

/// Digits of an id by which an event on its way is known.
pub const SHORT_ID: usize = 16;

/// Enough of an event's id to tell those on their way apart.
pub type ShortId = [u8; SHORT_ID];

/// One message.
#[derive(Debug, Clone)]
pub struct EventFrame {
    pub id: ShortId,
    pub text: Utf8Bytes,
}

/// The beginning of an id, as text.
pub fn short_id(id: &str) -> Option<ShortId> {
    id.as_bytes().first_chunk().copied()
}

impl EventFrame {
    /// Takes one message, whose id stands first.
    pub fn new(text: String) -> Option<Self> {
        let id = text.strip_prefix("[\"EVENT\",{\"id\":\"").and_then(short_id)?;
        Some(Self { id, text: text.into() })
    }
}

impl Frames {
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(BufReader::with_capacity(1 << 18, File::open(path)?)))
    }

    /// The next message; `None` at the end.
    ///
    /// # Errors
    /// When the file cannot be read or is not what was written.
    pub fn next(&mut self) -> io::Result<Option<EventFrame>> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        line.truncate(line.trim_end().len());
        let damaged =
            || io::Error::new(io::ErrorKind::InvalidData, "the cached events are damaged");
        EventFrame::new(line).map(Some).ok_or_else(damaged)
    }
}

/// The event inside an EVENT message to a relay.
pub fn event_json(frame: &str) -> Option<&str> {
    frame.strip_prefix("[\"EVENT\",")?.strip_suffix(']')
}
