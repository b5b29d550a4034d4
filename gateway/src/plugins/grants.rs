//! Only what was granted is linked. What the operator's manifest lists counts as granted.

use wasmtime::{
    Engine,
    component::{Component, HasSelf, Linker, types::ComponentItem},
};

use super::{
    bindings::{self, nostr_gateway::plugin},
    capabilities::Host,
    manifest::Capability,
};

/// Why a component cannot be linked.
#[derive(Debug, thiserror::Error)]
pub enum GrantError {
    #[error("it wants the interface `{0}`: add \"{1}\" to capabilities to allow it")]
    NotGranted(String, &'static str),
    #[error("it wants `{0}`, which this gateway does not have")]
    Unknown(String),
    #[error("the host's own interfaces do not link: {0:#}")]
    Link(wasmtime::Error),
}

/// A linker with exactly the granted interfaces, after a check that the component wants no others.
///
/// # Errors
/// Names the first interface that is missing.
pub fn linker(
    engine: &Engine,
    component: &Component,
    granted: &[Capability],
) -> Result<Linker<Host>, GrantError> {
    for (name, item) in component.component_type().imports(engine) {
        check(name, matches!(item.ty, ComponentItem::ComponentInstance(_)), granted)?;
    }
    let mut linker = Linker::new(engine);
    // A manifest may list a capability twice.
    linker.allow_shadowing(true);
    for capability in granted {
        match capability {
            Capability::Log => plugin::log::add_to_linker::<_, HasSelf<_>>(&mut linker, |h| h),
            Capability::Config => {
                plugin::config::add_to_linker::<_, HasSelf<_>>(&mut linker, |h| h)
            }
            Capability::Clock => plugin::clock::add_to_linker::<_, HasSelf<_>>(&mut linker, |h| h),
            Capability::Kv => plugin::kv::add_to_linker::<_, HasSelf<_>>(&mut linker, |h| h),
            Capability::Lookup => {
                plugin::lookup::add_to_linker::<_, HasSelf<_>>(&mut linker, |h| h)
            }
            // No component has it.
            Capability::Program => continue,
        }
        .map_err(GrantError::Link)?;
    }
    Ok(linker)
}

/// Checks one import, written `package/interface@version`.
fn check(import: &str, is_interface: bool, granted: &[Capability]) -> Result<(), GrantError> {
    // The name stands in the component and may be anything.
    let unknown = || GrantError::Unknown(super::printable::one_line(import, 200));
    let interface = import
        .strip_prefix(bindings::PACKAGE)
        .and_then(|rest| rest.strip_prefix('/'))
        .filter(|_| is_interface)
        .ok_or_else(unknown)?;
    // Which version it is was looked at before.
    let (interface, _) = interface.split_once('@').ok_or_else(unknown)?;
    // Only types: nothing that could be called.
    if interface == "types" {
        return Ok(());
    }
    let capability = Capability::parse(interface)
        .filter(|capability| *capability != Capability::Program)
        .ok_or_else(unknown)?;
    if !granted.contains(&capability) {
        return Err(GrantError::NotGranted(interface.to_owned(), capability.name()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(import: &str, is_interface: bool) -> String {
        check(import, is_interface, &[Capability::Log]).unwrap_err().to_string()
    }

    #[test]
    fn what_is_not_granted_is_named() {
        let granted = [Capability::Log];
        assert!(check("nostr-gateway:plugin/log@0.1.0", true, &granted).is_ok());
        assert!(check("nostr-gateway:plugin/log@0.1.7", true, &granted).is_ok());
        assert!(check("nostr-gateway:plugin/types@0.1.0", true, &[]).is_ok());
        assert_eq!(
            error("nostr-gateway:plugin/clock@0.1.0", true),
            "it wants the interface `clock`: add \"clock\" to capabilities to allow it"
        );
        assert_eq!(
            error("wasi:io/streams@0.2.0", true),
            "it wants `wasi:io/streams@0.2.0`, which this gateway does not have"
        );
        assert_eq!(error("run", false), "it wants `run`, which this gateway does not have");
    }
}
