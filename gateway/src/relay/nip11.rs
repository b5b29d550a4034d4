//! The relay information document (NIP-11). It claims only what is enforced.

use serde_json::json;

use super::RelayConfig;
use crate::{
    pipeline::Scope,
    protocol::{limits::Limits, message::MAX_SUBSCRIPTION_ID},
};

/// NIPs whose relay side is complete: 1, 11, 40 (expired events are neither taken nor sent) and 70
/// (protected events are refused).
const SUPPORTED_NIPS: [u16; 4] = [1, 11, 40, 70];

/// The document of the relay's root or of one topic, as JSON.
pub(super) fn document(config: &RelayConfig, limits: &Limits, scope: &Scope) -> String {
    let (name, description) = match scope {
        Scope::All => (config.name.clone(), config.description.clone()),
        Scope::Topic(topic) => (
            format!("{} / {topic}", config.name),
            format!("The topic {topic}. {}", config.description),
        ),
    };
    let mut limitation = json!({
        "max_message_length": config.max_message_bytes,
        "max_subscriptions": config.max_subscriptions,
        "max_filters": config.max_filters,
        "max_limit": config.max_limit,
        "default_limit": config.default_limit,
        "max_subid_length": MAX_SUBSCRIPTION_ID,
        "max_event_tags": limits.max_event_tags,
        "created_at_upper_limit": limits.max_future_s,
        "auth_required": false,
        "payment_required": false,
    });
    if limits.max_past_s != 0 {
        limitation["created_at_lower_limit"] = limits.max_past_s.into();
    }
    let mut document = json!({
        "name": name,
        "description": description,
        "supported_nips": SUPPORTED_NIPS,
        "software": env!("CARGO_PKG_REPOSITORY"),
        "version": env!("CARGO_PKG_VERSION"),
        "limitation": limitation,
    });
    if !config.contact.is_empty() {
        document["contact"] = config.contact.as_str().into();
    }
    document.to_string()
}
