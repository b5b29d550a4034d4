//! The methods of NIP-86.

use std::{collections::BTreeMap, fmt::Display, net::IpAddr, sync::Arc, time::Duration};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Management, params::Params};
use crate::{
    pipeline::{
        Removal,
        moderation::{Change, List, Rules},
    },
    protocol::{EventId, PublicKey},
    relay::{Action, Relay},
    tasks::{self, Tasks},
};

/// What was under way when somebody was banned is in the store by then.
const SECOND_LOOK: Duration = Duration::from_secs(5);

/// Longest name and description, in bytes.
const MAX_NAME: usize = 256;
const MAX_DESCRIPTION: usize = 4_096;

/// All methods but `supportedmethods`. `unlistkind` is our own: NIP-86 has no way to take a kind off
/// both lists again.
const METHODS: [&str; 25] = [
    "banpubkey",
    "unbanpubkey",
    "listbannedpubkeys",
    "allowpubkey",
    "unallowpubkey",
    "listallowedpubkeys",
    "listeventsneedingmoderation",
    "allowevent",
    "unallowevent",
    "banevent",
    "unbanevent",
    "listbannedevents",
    "listallowedevents",
    "changerelayname",
    "changerelaydescription",
    "changerelayicon",
    "allowkind",
    "disallowkind",
    "unlistkind",
    "listallowedkinds",
    "listdisallowedkinds",
    "blockip",
    "unblockip",
    "listblockedips",
    "supportedmethods",
];

/// A request's body.
#[derive(Deserialize)]
pub(super) struct Call {
    method: String,
    #[serde(default)]
    params: Vec<Value>,
}

impl Call {
    /// The method's name for the log: one of ours, so nothing foreign gets in there.
    pub fn method(&self) -> &'static str {
        METHODS.into_iter().find(|method| *method == self.method).unwrap_or("unknown")
    }

    pub fn changes(&self) -> bool {
        !self.method.starts_with("list") && self.method != "supportedmethods"
    }
}

/// An admin's request and what it acts on.
pub(super) struct Caller<'a> {
    pub relay: &'a Arc<Relay>,
    pub management: &'a Management,
    pub address: IpAddr,
    pub tasks: &'a Tasks,
}

impl Caller<'_> {
    /// Carries it out. The error is for the caller.
    pub async fn call(&self, call: &Call) -> Result<Value, String> {
        let rules = self.relay.moderation.rules();
        let params = Params(&call.params);
        match call.method.as_str() {
            "supportedmethods" => Ok(METHODS
                .iter()
                .filter(|method| **method != "supportedmethods")
                .copied()
                .collect()),
            "listbannedpubkeys" => Ok(listed("pubkey", &rules.banned_pubkeys)),
            "listallowedpubkeys" => Ok(listed("pubkey", &rules.allowed_pubkeys)),
            "listbannedevents" => Ok(listed("id", &rules.banned_events)),
            "listallowedevents" => Ok(listed("id", &rules.allowed_events)),
            "listblockedips" => Ok(listed("ip", &rules.blocked_ips)),
            "listallowedkinds" => Ok(rules.allowed_kinds.keys().copied().collect()),
            "listdisallowedkinds" => Ok(rules.disallowed_kinds.keys().copied().collect()),
            // Nothing waits for a moderator here.
            "listeventsneedingmoderation" => Ok(json!([])),
            "banpubkey" => self.ban_pubkey(&params).await,
            "unbanpubkey" => self.take(List::BannedPubkeys, params.pubkey()?).await,
            "allowpubkey" => {
                let key = params.pubkey()?;
                self.put(List::AllowedPubkeys, key, params.reason()?, &[List::BannedPubkeys]).await
            }
            "unallowpubkey" => {
                let done = self.take(List::AllowedPubkeys, params.pubkey()?).await?;
                self.close_unwelcome();
                Ok(done)
            }
            "banevent" => self.ban_event(&params).await,
            "unbanevent" => self.take(List::BannedEvents, params.event()?).await,
            "allowevent" => {
                let id = params.event()?;
                self.put(List::AllowedEvents, id, params.reason()?, &[List::BannedEvents]).await
            }
            "unallowevent" => self.take(List::AllowedEvents, params.event()?).await,
            "changerelayname" => self.rename("name", params.short_text(MAX_NAME)?).await,
            "changerelaydescription" => {
                self.rename("description", params.short_text(MAX_DESCRIPTION)?).await
            }
            "changerelayicon" => self.rename("icon", params.icon()?).await,
            "allowkind" => {
                let reason = params.reason()?;
                self.put(List::AllowedKinds, params.kind()?, reason, &[List::DisallowedKinds]).await
            }
            "disallowkind" => {
                let reason = params.reason()?;
                self.put(List::DisallowedKinds, params.kind()?, reason, &[List::AllowedKinds]).await
            }
            "unlistkind" => {
                let kind = params.kind()?.to_string();
                let both = [List::AllowedKinds, List::DisallowedKinds];
                let take = both.map(|list| (list, kind.clone())).into();
                self.change(Change { take, ..Change::default() }).await
            }
            "blockip" => {
                let network = params.network()?;
                if network.contains(self.address) {
                    return Err(format!("you call from {network} yourself"));
                }
                self.put(List::BlockedIps, network, params.reason()?, &[]).await?;
                let closed =
                    self.relay.connections.close_where(|address, _| network.contains(address));
                tracing::info!(%network, closed, "blocked");
                Ok(json!(true))
            }
            "unblockip" => self.take(List::BlockedIps, params.network()?).await,
            _ => Err("this method is not supported (supportedmethods lists those that are)".into()),
        }
    }

    async fn ban_pubkey(&self, params: &Params<'_>) -> Result<Value, String> {
        let key = params.pubkey()?;
        if self.management.admins.contains(&key) {
            return Err("this key is an admin's (relay.admins)".to_owned());
        }
        self.put(List::BannedPubkeys, key, params.reason()?, &[List::AllowedPubkeys]).await?;
        self.close_unwelcome();
        self.remove(Ban::Author(key)).await
    }

    async fn ban_event(&self, params: &Params<'_>) -> Result<Value, String> {
        let id = params.event()?;
        self.put(List::BannedEvents, id, params.reason()?, &[List::AllowedEvents]).await?;
        self.remove(Ban::Event(id)).await
    }

    /// In place of the configuration's; an empty text goes back to that.
    async fn rename(&self, field: &str, value: String) -> Result<Value, String> {
        if value.is_empty() {
            self.take(List::Relay, field).await
        } else {
            self.put(List::Relay, field, value, &[]).await
        }
    }

    /// Puts an item on a list and takes it off the others.
    async fn put(
        &self,
        list: List,
        item: impl Display,
        text: String,
        off: &[List],
    ) -> Result<Value, String> {
        let item = item.to_string();
        let take = off.iter().map(|list| (*list, item.clone())).collect();
        self.change(Change { take, put: vec![(list, item, text)] }).await
    }

    async fn take(&self, list: List, item: impl Display) -> Result<Value, String> {
        self.change(Change { take: vec![(list, item.to_string())], ..Change::default() }).await
    }

    async fn change(&self, change: Change) -> Result<Value, String> {
        self.relay.moderation.change(change).await.map_err(|error| error.to_string())?;
        Ok(json!(true))
    }

    /// Ends the connections whose keys will no longer do. The others are asked with their next
    /// message.
    fn close_unwelcome(&self) {
        let access = &self.relay.access;
        self.relay.connections.close_where(|_, viewer| {
            !viewer.keys().is_empty() && access.refusal(viewer, Action::Read).is_some()
        });
    }

    /// Takes out what is stored, and once more what was past the rules already when they changed.
    async fn remove(&self, ban: Ban) -> Result<Value, String> {
        let writer = self.management.writer.clone();
        let removal = ban.removal(&self.relay.moderation.rules());
        let removed = tasks::blocking(move || writer.remove(removal)).await;
        let removed = removed.map_err(|error| error.to_string())?;
        let count = removed.map_err(|error| format!("banned, but not removed: {error}"))?;
        tracing::info!(count, "removed what is banned");

        let (relay, writer) = (self.relay.clone(), self.management.writer.clone());
        let token = self.tasks.token().clone();
        self.tasks.spawn("second look", async move {
            tokio::select! {
                () = token.cancelled() => return,
                () = tokio::time::sleep(SECOND_LOOK) => {}
            }
            let rules = relay.moderation.rules();
            let still_banned = match &ban {
                Ban::Event(id) => rules.banned_events.contains_key(id),
                Ban::Author(key) => rules.banned_pubkeys.contains_key(key),
            };
            if still_banned {
                let removal = ban.removal(&rules);
                let removed = tasks::blocking(move || writer.remove(removal)).await;
                if !matches!(removed, Ok(Ok(_))) {
                    tracing::warn!("cannot look for banned events a second time");
                }
            }
        });
        Ok(json!(true))
    }
}

/// What was banned.
#[derive(Clone, Copy)]
enum Ban {
    Event(EventId),
    Author(PublicKey),
}

impl Ban {
    /// What is to be taken out, by these rules: events that are allowed by themselves stay.
    fn removal(self, rules: &Rules) -> Removal {
        match self {
            Self::Event(id) => Removal::Event(id),
            Self::Author(key) => {
                Removal::Author { key, keep: rules.allowed_events.keys().copied().collect() }
            }
        }
    }
}

/// A list as NIP-86 writes it: `[{"pubkey": …, "reason": …}, …]`.
fn listed<K: Display>(name: &str, entries: &BTreeMap<K, Arc<str>>) -> Value {
    let entries = entries.iter().map(|(key, reason)| {
        let mut entry = json!({ name: key.to_string() });
        if !reason.is_empty() {
            entry["reason"] = (**reason).into();
        }
        entry
    });
    entries.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_written_as_in_nip_86() {
        let entries = BTreeMap::from([(1, Arc::from("spam")), (2, Arc::from(""))]);
        assert_eq!(listed("id", &entries), json!([{"id": "1", "reason": "spam"}, {"id": "2"}]));
    }
}
