//! Builds the programs of `tests/freestanding/src/bin`, as firmware is built.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The levels of optimisation that firmware takes.
pub(crate) const LEVELS: [&str; 3] = ["s", "z", "3"];

/// Builds programs, and returns where they are; what the compiler and the linker said, if one of them does not link.
pub(crate) fn build(level: &str, names: &[&str]) -> Result<PathBuf, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/freestanding");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fitness");
    let level = if level == "3" { level.to_owned() } else { format!("{level:?}") };
    let output = Command::new(env!("CARGO"))
        .args(["build", "--locked", "--quiet", "--release", "--keep-going", "--features", "panic-free"])
        .args(names.iter().flat_map(|name| ["--bin", name]))
        .arg("--config")
        .arg(format!("profile.release.opt-level={level}"))
        .arg("--manifest-path")
        .arg(source.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .env("CARGO_INCREMENTAL", "0")
        .env_remove("RUSTFLAGS")
        .output()
        .expect("cargo runs");
    if output.status.success() {
        Ok(target.join("release"))
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}
