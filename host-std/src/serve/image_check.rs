//! Checks of an image before it is served: whether it is one, and whether it keeps what its guest is told.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use blk_core::storage::CacheMode;

use super::config::{ConfigError, ImageConfig, Size};
use crate::probe::{Verdict, probe};

/// Refuses a file with the header of another format: the guest would find that header where its disk begins, and write over it.
///
/// A guest can write such a header to its own disk. It is refused at the next start then, and the operator decides.
pub(super) fn check_format(config: &ImageConfig) -> Result<(), ConfigError> {
    let known = config.format.is_none().then(|| foreign_format(&config.path)).flatten();
    let Some(format) = known else { return Ok(()) };
    let remedy = format!(
        "convert it: qemu-img convert -O raw {path} {path}.raw; or give format=raw, if its guest has written that there",
        path = config.path.display()
    );
    Err(ConfigError::new(
        format!("image {}", config.path.display()),
        format!("its header is that of {format}"),
        remedy,
    ))
}

/// Warns of what makes promises to the guest worth less than they sound, or is not as it was asked for. One line for each, with the
/// remedy. `bytes` is the size that the image is served with.
pub(super) fn warn(config: &ImageConfig, bytes: u64) {
    let image = config.path.display();
    if config.cache == CacheMode::Unsafe {
        tracing::warn!(%image, "cache=unsafe: a crash of the host loses what the guest has flushed; give another cache mode");
    }
    if begins_with(&config.path, 0, b"LUKS\xba\xbe") {
        tracing::warn!(%image, "has a LUKS header: the guest sees what is encrypted; to serve what is inside, cryptsetup open it, and serve the mapped device");
    }
    if let Some(device) = loop_device_over(&config.path) {
        tracing::warn!(%image, device, "is the backing file of a loop device too: two writers destroy it; losetup --detach the device, or serve that");
    }
    if let (Some(size), Some(room)) = (config.size, file_system_bytes(&config.path))
        && size.0 > room
    {
        tracing::warn!(%image, size = size.0, room, "size= is more than its file system has: the guest's writes will fail; give a smaller one, or a larger file system");
    }
    if let Some(size) = config.size.filter(|size| size.0 < bytes) {
        tracing::warn!(%image, "size={size} is less than the image has, {has}: it is served with all of it, as an image is never made smaller; leave size out, or give size={has}", has = Size(bytes));
    }
    match probe(&config.path) {
        Ok(report) => {
            for layer in &report.layers {
                for finding in layer.findings.iter().filter(|finding| finding.verdict == Verdict::Unsafe) {
                    let remedy = finding.remedy.as_deref().unwrap_or("see blk-host probe");
                    let (layer, what, why) = (&layer.name, &finding.what, &finding.why);
                    tracing::warn!(%image, "what is flushed may be lost: {layer}: {what}: {why}; {remedy}");
                }
            }
        }
        Err(error) => tracing::debug!(%image, %error, "not probed"),
    }
}

/// The format whose header a file has. LUKS is none of them: a guest that encrypts its disk leaves that there.
fn foreign_format(path: &Path) -> Option<&'static str> {
    // QEMU, docs/interop/qcow2.rst and block/{qed.h,vmdk.c,vdi.c,vhdx.h,vpc.c}.
    let headers: [(u64, &[u8], &str); 8] = [
        (0, b"QFI\xfb", "qcow2"),
        (0, b"QED\0", "QED"),
        (0, b"KDMV", "VMDK"),
        (0, b"COWD", "VMDK"),
        (0, b"# Disk DescriptorFile", "VMDK"),
        (0x40, &0xbeda_107f_u32.to_le_bytes(), "VDI"),
        (0, b"vhdxfile", "VHDX"),
        (0, b"conectix", "VHD"),
    ];
    headers.iter().find(|(at, magic, _)| begins_with(path, *at, magic)).map(|&(.., format)| format)
}

fn begins_with(path: &Path, at: u64, magic: &[u8]) -> bool {
    let mut bytes = vec![0; magic.len()];
    // What cannot be read is told by whoever opens it to serve it.
    let regular_or_block = |path: &Path| !path.metadata().is_ok_and(|metadata| is_stream(metadata.mode()));
    regular_or_block(path)
        && File::open(path).and_then(|file| file.read_exact_at(&mut bytes, at)).is_ok()
        && bytes == magic
}

/// Opening a pipe would wait for its other end.
fn is_stream(mode: u32) -> bool {
    mode & libc::S_IFMT != libc::S_IFREG && mode & libc::S_IFMT != libc::S_IFBLK
}

/// A loop device that has the file (Linux, Documentation/ABI/testing/sysfs-block-loop).
fn loop_device_over(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let devices = std::fs::read_dir("/sys/block").ok()?;
    devices.flatten().find_map(|device| {
        let file = std::fs::read_to_string(device.path().join("loop/backing_file")).ok()?;
        (Path::new(file.trim_end_matches('\n')) == path)
            .then(|| format!("/dev/{}", device.file_name().display()))
    })
}

/// `None` also where there is no limit, as on a tmpfs without one: it has 0 blocks (Linux, mm/shmem.c, `shmem_statfs`).
fn file_system_bytes(path: &Path) -> Option<u64> {
    let facts = path.metadata().ok()?.is_file().then(|| rustix::fs::statvfs(path))?.ok()?;
    facts.f_blocks.checked_mul(facts.f_frsize).filter(|bytes| *bytes != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::config::ImageFormat;

    #[test]
    fn a_foreign_header_is_refused_unless_format_raw_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let vdi = [&[0; 0x40][..], &[0x7f, 0x10, 0xda, 0xbe]].concat();
        for (header, format) in [
            (&b"QFI\xfb\0\0\0\x03"[..], "qcow2"),
            (b"QED\0", "QED"),
            (b"KDMV", "VMDK"),
            (b"# Disk DescriptorFile\n", "VMDK"),
            (&vdi, "VDI"),
            (b"vhdxfile", "VHDX"),
        ] {
            std::fs::write(&path, [header, &[0; 512]].concat()).unwrap();
            let mut config = ImageConfig::new(&path);
            let text = check_format(&config).unwrap_err().to_string();
            assert!(text.contains(format) && text.contains("format=raw"), "{text}");
            assert!(text.contains(path.to_str().unwrap()), "{text}");
            config.format = Some(ImageFormat::Raw);
            check_format(&config).unwrap();
        }
        for raw in [&b"LUKS\xba\xbe"[..], b"QFI", b"", b"\xeb\x63\x90"] {
            std::fs::write(&path, raw).unwrap();
            check_format(&ImageConfig::new(&path)).unwrap();
        }
        check_format(&ImageConfig::new(dir.path().join("absent"))).unwrap();
    }
}
