//! Lines in the gateway's log. Need the capability `log`.

use crate::{bindings::nostr_gateway::plugin::log::Level, host::log::write};

/// For whoever debugs this plugin.
pub fn trace(message: &str) {
    write(Level::Trace, message);
}

/// For whoever debugs this plugin.
pub fn debug(message: &str) {
    write(Level::Debug, message);
}

/// What an operator may want to know.
pub fn info(message: &str) {
    write(Level::Info, message);
}

/// What an operator should look at.
pub fn warn(message: &str) {
    write(Level::Warn, message);
}

/// What keeps the plugin from doing its work.
pub fn error(message: &str) {
    write(Level::Error, message);
}
