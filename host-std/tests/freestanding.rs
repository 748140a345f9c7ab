//! The models link into a program with neither std nor alloc nor an allocator, and work there.

use std::path::Path;
use std::process::Command;

/// The firmware in miniature, built apart so that no feature of this workspace reaches it.
fn build() -> std::path::PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/freestanding");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("freestanding");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--locked", "--quiet", "--bin", "freestanding", "--manifest-path"])
        .arg(source.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .env_remove("RUSTFLAGS")
        .status()
        .expect("cargo runs");
    assert!(built.success(), "the freestanding program does not build");
    target.join("debug/freestanding")
}

#[test]
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn the_models_link_and_run_without_std_alloc_or_an_allocator() {
    let program = build();
    let image = std::fs::read(&program).expect("the program was built");
    let names = |text: &str| image.windows(text.len()).any(|window| window == text.as_bytes());
    // Symbol names stay in the ELF file's string table, which is not stripped.
    assert!(names("freestanding_main"), "no symbol table: this test would see nothing");
    for absent in [
        "__rust_alloc",
        "__rust_dealloc",
        "__libc_start_main",
        "_ZN3std",
        "_ZN5alloc",
        "_RNvCs_3std",
        "GLIBC_",
    ] {
        assert!(!names(absent), "{absent} is linked into the freestanding program");
    }
    let status = Command::new(&program).status().expect("the program runs").code();
    assert_eq!(status, Some(0), "10: virtio-blk, 20: SCSI, 30: ATA, 40: virtio-blk on PCI, 101: a panic");
}

/// What `#![forbid(unsafe_code)]` and `#![no_std]` say at the top of each model crate, the compiler holds the rest to.
#[test]
fn the_model_crates_forbid_unsafe_and_use_neither_std_nor_alloc() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    for model in ["blk-core", "ata-model", "scsi-model", "virtio-blk-model"] {
        let text = std::fs::read_to_string(root.join(model).join("src/lib.rs")).expect("a crate has a root");
        assert!(text.contains("#![no_std]") && text.contains("#![forbid(unsafe_code)]"), "{model}");
        assert!(!text.contains("extern crate alloc"), "{model}");
        for line in
            text.lines().zip(text.lines().skip(1)).filter(|(_, line)| line.contains("extern crate std"))
        {
            assert!(line.0.contains(r#"feature = "sim""#), "{model}: std only for the proof");
        }
    }
}
