//! The relay information document (NIP-11). It claims only what is enforced, and only what is on.

use serde_json::json;

use super::{Access, RelayConfig};
use crate::{
    pipeline::{Scope, moderation::Rules},
    protocol::{PublicKey, limits::Limits, message::MAX_SUBSCRIPTION_ID},
};

/// NIPs whose relay side is always on. 17 and 59 are here for what they ask of relays: gift wraps
/// are shown to their recipients alone.
const ALWAYS: [u16; 12] = [1, 9, 11, 17, 40, 42, 45, 59, 62, 67, 70, 77];

/// What the document is made of.
pub(super) struct About<'a> {
    pub config: &'a RelayConfig,
    pub limits: &'a Limits,
    pub access: &'a Access,
    pub rules: &'a Rules,
    /// NIP-50 is on.
    pub search: bool,
    /// NIP-86 is on.
    pub managed: bool,
}

/// The document of the relay's root or of one topic, as JSON.
pub(super) fn document(about: &About<'_>, scope: &Scope) -> String {
    let About { config, limits, access, rules, .. } = about;
    // What the operator said while it runs goes before the configuration.
    let field = |name: &str, configured: &str| match rules.relay.get(name) {
        Some(said) => said.to_string(),
        None => configured.to_owned(),
    };
    let (name, description) =
        (field("name", &config.name), field("description", &config.description));
    let (name, description) = match scope {
        Scope::All => (name, description),
        Scope::Topic(topic) => {
            (format!("{name} / {topic}"), format!("The topic {topic}. {description}"))
        }
    };
    let restricted =
        access.restricts_writes() || limits.min_pow != 0 || !rules.allowed_kinds.is_empty();
    let mut limitation = json!({
        "max_message_length": config.max_message_bytes,
        "max_subscriptions": config.max_subscriptions,
        "max_filters": config.max_filters,
        "max_limit": config.max_limit,
        "default_limit": config.default_limit,
        "max_subid_length": MAX_SUBSCRIPTION_ID,
        "max_event_tags": limits.max_event_tags,
        "max_event_bytes": limits.max_event_bytes,
        "max_negentropy_events": config.max_negentropy_events,
        "created_at_upper_limit": limits.max_future_s,
        "min_pow_difficulty": limits.min_pow,
        "auth_required": access.nothing_is_open(),
        "payment_required": false,
        "restricted_writes": restricted,
    });
    if limits.max_past_s != 0 {
        limitation["created_at_lower_limit"] = limits.max_past_s.into();
    }
    let mut document = json!({
        "name": name,
        "description": description,
        "supported_nips": supported_nips(about),
        "software": env!("CARGO_PKG_REPOSITORY"),
        "version": env!("CARGO_PKG_VERSION"),
        "limitation": limitation,
    });
    if !config.contact.is_empty() {
        document["contact"] = config.contact.as_str().into();
    }
    if let Some(pubkey) = PublicKey::from_text(&config.pubkey) {
        document["pubkey"] = pubkey.to_string().into();
    }
    let icon = field("icon", &config.icon);
    if !icon.is_empty() {
        document["icon"] = icon.into();
    }
    document.to_string()
}

fn supported_nips(about: &About<'_>) -> Vec<u16> {
    let mut nips = ALWAYS.to_vec();
    nips.extend((about.limits.min_pow != 0).then_some(13));
    nips.extend(about.search.then_some(50));
    nips.extend(about.managed.then_some([86, 98]).into_iter().flatten());
    nips.sort_unstable();
    nips
}
