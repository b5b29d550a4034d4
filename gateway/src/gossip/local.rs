//! Gateways seen on the local network, for all topics: mDNS tells who is there, not in which topics.

use std::{collections::BTreeSet, sync::Arc};

use futures_util::StreamExt;
use iroh::EndpointId;
use iroh_mdns_address_lookup::{DiscoveryEvent, MdnsAddressLookup};
use tokio::sync::watch;

use super::{endpoint, net::Net};
use crate::tasks::Tasks;

/// How many are remembered at once. A network with more has enough neighbors among these.
const MAX_SEEN: usize = 256;

/// Who is on the local network at the moment.
pub type LocalPeers = watch::Receiver<Arc<BTreeSet<EndpointId>>>;

/// Adds the lookup to the endpoint, and to one that replaces it, and follows the mDNS announcements
/// until shutdown, in one subscription shared by all topics. `None` when this machine has no usable
/// interface.
pub fn follow(net: Arc<Net>, service: &str, tasks: &Tasks) -> Option<LocalPeers> {
    let (seen, peers) = watch::channel(Arc::default());
    let mut stacks = net.follow();
    let mut mdns = Some(endpoint::add_mdns(&net.endpoint(), service)?);
    let service = service.to_owned();
    let token = tasks.token().clone();
    tasks.spawn("mdns", async move {
        let following = async {
            loop {
                tokio::select! {
                    () = listen(mdns.as_ref(), &seen) => {}
                    changed = stacks.changed() => if changed.is_err() { return },
                }
                let endpoint = stacks.borrow_and_update().endpoint.clone();
                mdns = endpoint::add_mdns(&endpoint, &service);
            }
        };
        token.run_until_cancelled(following).await;
    });
    Some(peers)
}

/// Never ends; there is nothing to hear when the subscription has.
async fn listen(mdns: Option<&MdnsAddressLookup>, seen: &watch::Sender<Arc<BTreeSet<EndpointId>>>) {
    if let Some(mdns) = mdns {
        let mut events = mdns.subscribe().await;
        while let Some(event) = events.next().await {
            note(seen, event);
        }
    }
    std::future::pending().await
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
