//! `componentize CORE.wasm COMPONENT.wasm`: makes a component of a core module that was built with
//! the SDK, and validates it. The module carries its world in a custom section.

use std::{error::Error, fs, path::PathBuf, process::ExitCode};

use wit_component::ComponentEncoder;

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [core, component] = arguments.as_slice() else {
        eprintln!("usage: componentize CORE.wasm COMPONENT.wasm");
        return ExitCode::from(2);
    };
    let result = fs::read(core)
        .map_err(Into::into)
        .and_then(|module| encode(&module))
        .and_then(|bytes| Ok(fs::write(component, bytes)?));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", core.display());
            ExitCode::FAILURE
        }
    }
}

fn encode(module: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut encoder = ComponentEncoder::default();
    encoder.validate(true);
    // `{:#}` keeps the causes, which name the import or export that does not fit.
    encoder.module(module).map_err(|error| format!("{error:#}"))?;
    Ok(encoder.encode().map_err(|error| format!("{error:#}"))?)
}
