//! The models' messages, as an operator reads them: a program without an operating system logs them by defmt, and they are decoded.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Builds a program of a package that is no part of the workspace, and returns where it is.
fn build(package: &str, program: &str, profile: &str, arguments: &[&str]) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join(package);
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(package).join("Cargo.toml");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--locked", "--quiet", "--profile", profile, "--bin", program])
        .args(arguments)
        .arg("--manifest-path")
        .arg(manifest)
        .arg("--target-dir")
        .arg(&target)
        .env("CARGO_INCREMENTAL", "0")
        .env("DEFMT_LOG", "debug")
        .env_remove("RUSTFLAGS")
        .status()
        .expect("cargo runs");
    assert!(status.success(), "{package}: {program} builds");
    target.join(if profile == "dev" { "debug" } else { profile }).join(program)
}

#[test]
fn what_a_device_logs_is_decoded() {
    let program = build("freestanding", "log", "release", &["--features", "defmt"]);
    let logged = Command::new(&program).output().expect("the program runs");
    assert!(logged.status.success(), "{}", logged.status);

    let mut decode = Command::new(build("defmt_decoder", "decode", "dev", &[]));
    let mut decode =
        decode.arg(&program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it runs");
    decode.stdin.take().expect("a pipe").write_all(&logged.stdout).expect("it reads");
    let decoded = decode.wait_with_output().expect("it ends");
    assert!(decoded.status.success(), "every frame is whole");
    let expected = [
        "debug virtio-blk: request Some(Unknown { kind: 119 }) answered Unsupported",
        "error disk latched: a durable operation failed: IoError { kind: Medium, lba: None }",
        "warn virtio-blk: operation failed: IoError { kind: Medium, lba: None }",
        "debug virtio-blk: request Some(Flush) answered IoErr",
        "warn virtio-blk: queue 0 is broken until a reset: AvailableIndex",
        "info virtio-blk: reset, 0 requests in flight",
        "info virtio-blk: reset is over",
        "debug ata: command refused: Aborted",
        "warn ata: operation failed: IoError { kind: Medium, lba: None }",
        "info ata: reset, 0 operations in flight",
        "info ata: reset is over: Software",
        "info scsi: reset of a unit, 0 operations in flight: Hard",
        // A unit attention for the reset; INVALID COMMAND OPERATION CODE, 20h 00h.
        "debug scsi: CHECK CONDITION: Sense { key: UnitAttention, code: Code(10496), deferred: false, information: None, field: None }",
        "debug scsi: CHECK CONDITION: Sense { key: IllegalRequest, code: Code(8192), deferred: false, information: None, field: None }",
    ];
    assert_eq!(String::from_utf8_lossy(&decoded.stdout).lines().collect::<Vec<_>>(), expected);
}
