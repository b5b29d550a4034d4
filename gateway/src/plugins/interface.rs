//! Which version of the plugin interface a component was built for.

use semver::Version;
use wasmtime::{Engine, component::Component};

use super::{
    bindings::{self, VERSION},
    printable::one_line,
};

/// It was built for another version of the interface than this gateway has.
#[derive(Debug, thiserror::Error)]
#[error("it was built for version {found} of the plugin interface; this gateway has {VERSION}")]
pub struct WrongVersion {
    found: String,
}

/// Looks at the names of what the component imports and exports: a component of another version would
/// else fail for a function or a type, in words that help nobody.
///
/// # Errors
/// When one of them is of a version that this gateway does not have.
pub fn check(engine: &Engine, component: &Component) -> Result<(), WrongVersion> {
    let component = component.component_type();
    let imports = component.imports(engine).map(|(name, _)| name);
    let exports = component.exports(engine).map(|(name, _)| name);
    imports.chain(exports).try_for_each(check_name)
}

/// One name: `package/interface@version`. Those of other packages are not for us.
fn check_name(name: &str) -> Result<(), WrongVersion> {
    let own = name.strip_prefix(bindings::PACKAGE).and_then(|rest| rest.strip_prefix('/'));
    let Some(interface) = own else { return Ok(()) };
    let version = interface.split_once('@').map_or("", |(_, version)| version);
    match Version::parse(version) {
        Ok(found) if is_ours(&found) => Ok(()),
        // The name stands in the component and may be anything.
        Ok(_) => Err(WrongVersion { found: one_line(version, 40) }),
        Err(_) => Err(WrongVersion { found: format!("{:?}", one_line(version, 40)) }),
    }
}

/// Until 1.0 a version is like those with the same minor number that are not newer.
fn is_ours(found: &Version) -> bool {
    (found.major, found.minor) == (VERSION.major, VERSION.minor) && *found <= VERSION
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_is_named_in_one_line() {
        for fits in ["nostr-gateway:plugin/log@0.1.0", "wasi:io/streams@0.2.0", "run", ""] {
            assert!(check_name(fits).is_ok(), "{fits}");
        }
        for (name, version) in [
            ("nostr-gateway:plugin/log@0.2.0", "0.2.0"),
            ("nostr-gateway:plugin/filter@1.0.0-rc.1", "1.0.0-rc.1"),
            ("nostr-gateway:plugin/filter@0.1.1", "0.1.1"),
            ("nostr-gateway:plugin/filter", "\"\""),
            ("nostr-gateway:plugin/filter@x\ny", "\"x y\""),
        ] {
            assert_eq!(
                check_name(name).unwrap_err().to_string(),
                format!(
                    "it was built for version {version} of the plugin interface; this gateway has \
                     0.1.0"
                )
            );
        }
    }
}
