//! Capability `log`: lines in the gateway's log, so few and so short that a plugin cannot fill a
//! disk with them.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::Host;
use crate::plugins::{
    bindings::nostr_gateway::plugin::log::{self, Level},
    printable::one_line,
    target::Target,
};

/// How many lines one plugin may write in each [`WINDOW`], all its instances together.
const LINES: u32 = 20;
const WINDOW: Duration = Duration::from_secs(1);

/// The longest line, in bytes.
const LINE_BYTES: usize = 1_024;

/// Writes a plugin's lines, and the host's own about the plugin.
pub struct PluginLog {
    target: Target,
    window: Mutex<Window>,
}

struct Window {
    began: Instant,
    lines: u32,
    dropped: u64,
}

impl PluginLog {
    /// Make one for each id: its target lives for ever.
    pub fn new(id: &str) -> Self {
        let target = Target::new(id);
        Self { target, window: Mutex::new(Window { began: Instant::now(), lines: 0, dropped: 0 }) }
    }

    /// Writes one line, or drops it when the plugin has had its share. Returns whether it was
    /// written.
    pub fn write(&self, level: Level, message: &str) -> bool {
        let level = match level {
            Level::Trace => tracing::Level::TRACE,
            Level::Debug => tracing::Level::DEBUG,
            Level::Info => tracing::Level::INFO,
            Level::Warn => tracing::Level::WARN,
            Level::Error => tracing::Level::ERROR,
        };
        // What nobody reads must not use up the share of what somebody does.
        if !self.target.is_enabled(level) {
            return false;
        }
        let Some(dropped) = self.admit(Instant::now()) else { return false };
        if dropped > 0 {
            let text = format!("the plugin wrote too many lines; {dropped} are left out");
            self.target.write(tracing::Level::WARN, &text);
        }
        self.target.write(level, &one_line(message, LINE_BYTES));
        true
    }

    /// The number of lines dropped before this one, or nothing when it is to be dropped too.
    fn admit(&self, now: Instant) -> Option<u64> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(window.began) >= WINDOW {
            window.began = now;
            window.lines = 0;
        }
        if window.lines == LINES {
            window.dropped += 1;
            return None;
        }
        window.lines += 1;
        Some(std::mem::take(&mut window.dropped))
    }
}

impl log::Host for Host {
    fn write(&mut self, level: Level, message: String) {
        self.log.write(level, &message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let log = PluginLog::new("x");
        let start = Instant::now();
        let admitted = (0..10_000).filter(|_| log.admit(start).is_some()).count();
        assert_eq!(admitted, LINES as usize);
        assert_eq!(log.admit(start + WINDOW), Some(10_000 - u64::from(LINES)));
        assert_eq!(log.admit(start + WINDOW), Some(0));
    }
}
