//! Gateways seen on the local network, for all topics: mDNS tells who is there, not in which topics.

use std::{collections::BTreeSet, sync::Arc};

use futures_util::StreamExt;
use iroh::EndpointId;
use iroh_mdns_address_lookup::{DiscoveryEvent, MdnsAddressLookup};
use tokio::sync::watch;

use crate::tasks::Tasks;

/// How many are remembered at once. A network with more has enough neighbors among these.
const MAX_SEEN: usize = 256;

/// Who is on the local network at the moment.
pub type LocalPeers = watch::Receiver<Arc<BTreeSet<EndpointId>>>;

/// Follows the mDNS announcements until shutdown, in one subscription shared by all topics.
pub fn follow(mdns: MdnsAddressLookup, tasks: &Tasks) -> LocalPeers {
    let (seen, peers) = watch::channel(Arc::default());
    let token = tasks.token().clone();
    tasks.spawn("mdns", async move {
        let mut events = mdns.subscribe().await;
        while let Some(Some(event)) = token.run_until_cancelled(events.next()).await {
            note(&seen, event);
        }
    });
    peers
}

fn note(seen: &watch::Sender<Arc<BTreeSet<EndpointId>>>, event: DiscoveryEvent) {
    match event {
        DiscoveryEvent::Discovered { endpoint_info, .. } => seen.send_modify(|peers| {
            if peers.len() < MAX_SEEN {
                Arc::make_mut(peers).insert(endpoint_info.endpoint_id);
            }
        }),
        DiscoveryEvent::Expired { endpoint_id } => seen.send_modify(|peers| {
            Arc::make_mut(peers).remove(&endpoint_id);
        }),
        _ => {}
    }
}
