//! Lines to copy that attach a guest.

use std::fmt::Write as _;
use std::path::Path;

use super::config::{DeviceConfig, DeviceKind};

/// The lines that attach a guest to a device on a socket at `path`.
#[must_use]
pub fn lines(name: &str, device: &DeviceConfig, path: &Path) -> String {
    let path = path.display().to_string();
    let queues = device.queues;
    let (qemu, uml) = match device.kind {
        DeviceKind::VirtioBlk => ("vhost-user-blk-pci,num-queues", 2),
        DeviceKind::VirtioScsi => ("vhost-user-scsi-pci,num_queues", 8),
        _ => return vfio_user(&path),
    };
    let mut text = String::new();
    let socket = quoted(&format!("socket,id={name},path={}", path.replace(',', ",,")));
    let (driver, queues_key) = qemu.split_once(',').unwrap_or((qemu, "num-queues"));
    // Written into a String, which cannot fail.
    let _ = writeln!(
        text,
        "QEMU:\n  qemu-system-x86_64 -machine q35,memory-backend=mem -m 1G \\\n    \
         -object memory-backend-memfd,id=mem,size=1G,share=on \\\n    -chardev {socket} \\\n    \
         -device {driver},chardev={name},{queues_key}={queues} ..."
    );
    match device.kind {
        DeviceKind::VirtioBlk => {
            let disk = quoted(&format!(
                "vhost_user=true,socket={path},num_queues={queues},queue_size={}",
                device.queue_size
            ));
            let _ = writeln!(
                text,
                "cloud-hypervisor:\n  cloud-hypervisor --memory size=1G,shared=on --disk {disk} ..."
            );
        }
        _ => text.push_str("cloud-hypervisor: has no virtio-scsi; serve virtio-blk\n"),
    }
    if path.contains([':', ' ']) {
        text.push_str("User-Mode Linux: takes no path with a colon or a space\n");
    } else {
        let _ = writeln!(
            text,
            "User-Mode Linux:\n  linux.uml mem=256M virtio_uml.device={}:{uml} ...",
            quoted(&path)
        );
    }
    text
}

/// The lines for a PCI device. QEMU has the client from 10.1 on.
fn vfio_user(path: &str) -> String {
    // The option is JSON: text in quotes, backslashes and quotes escaped.
    let socket = serde_json::Value::from(path);
    let device = quoted(&format!(
        "{{\"driver\":\"vfio-user-pci\",\"socket\":{{\"type\":\"unix\",\"path\":{socket}}}}}"
    ));
    format!(
        "QEMU (10.1 or newer):\n  qemu-system-x86_64 -machine q35,memory-backend=mem -m 1G \\\n    \
         -object memory-backend-memfd,id=mem,size=1G,share=on \\\n    -device {device} ...\n\
         cloud-hypervisor:\n  cloud-hypervisor --memory size=1G,shared=on --user-device {} ...\n",
        quoted(&format!("socket={path}"))
    )
}

/// As one word of a shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-=,:+@%".contains(c);
    if text.chars().all(plain) { text.into() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::config::{AhciMessages, IdeChip, IdeMode};

    fn device(kind: DeviceKind) -> DeviceConfig {
        DeviceConfig {
            name: None,
            kind,
            socket: None,
            fd: None,
            queues: 4,
            queue_size: 256,
            ide_chip: IdeChip::Piix3,
            ide_mode: IdeMode::Native,
            ahci_messages: AhciMessages::PerPort,
            once: false,
            images: Vec::new(),
        }
    }

    #[test]
    fn the_lines_share_memory_and_name_the_socket() {
        let text = lines("disk0", &device(DeviceKind::VirtioBlk), Path::new("/run/s.sock"));
        assert!(text.contains("share=on") && text.contains("shared=on"), "{text}");
        assert!(text.contains("-chardev socket,id=disk0,path=/run/s.sock"), "{text}");
        assert!(text.contains("vhost-user-blk-pci,chardev=disk0,num-queues=4"), "{text}");
        assert!(text.contains("virtio_uml.device=/run/s.sock:2"), "{text}");
    }

    #[test]
    fn scsi_is_offered_where_it_is_known() {
        let text = lines("host", &device(DeviceKind::VirtioScsi), Path::new("/run/s.sock"));
        assert!(text.contains("vhost-user-scsi-pci,chardev=host,num_queues=4"), "{text}");
        assert!(text.contains("has no virtio-scsi") && text.contains("/run/s.sock:8"), "{text}");
    }

    #[test]
    fn pci_devices_are_attached_over_vfio_user() {
        let text = lines("disk0", &device(DeviceKind::Ahci), Path::new("/run/a \"b\".sock"));
        let option = r#"'{"driver":"vfio-user-pci","socket":{"type":"unix","path":"/run/a \"b\".sock"}}'"#;
        assert!(text.contains(option) && text.contains("share=on"), "{text}");
        assert!(text.contains("--user-device") && !text.contains("vhost"), "{text}");
    }

    #[test]
    fn odd_paths_are_quoted_for_the_shell_and_for_qemu() {
        let text = lines("disk0", &device(DeviceKind::VirtioBlk), Path::new("/run/my disk,1.sock"));
        assert!(text.contains("'socket,id=disk0,path=/run/my disk,,1.sock'"), "{text}");
        assert!(text.contains("takes no path"), "{text}");
    }
}
