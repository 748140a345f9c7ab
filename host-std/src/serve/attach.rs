//! Lines to copy that attach a guest: one command for each program, with all devices.

use std::path::Path;

use super::config::{DeviceConfig, DeviceKind};

/// A device and the socket that a guest is attached by.
#[derive(Debug)]
pub struct Attachment<'a> {
    name: &'a str,
    device: &'a DeviceConfig,
    path: String,
}

impl<'a> Attachment<'a> {
    /// The device of this name on a socket at `path`.
    #[must_use]
    pub fn new(name: &'a str, device: &'a DeviceConfig, path: &Path) -> Self {
        Self { name, device, path: path.display().to_string() }
    }
}

/// The lines that attach a guest to devices.
#[must_use]
pub fn lines(devices: &[Attachment<'_>]) -> String {
    if devices.is_empty() {
        return String::new();
    }
    [qemu(devices), cloud_hypervisor(devices), user_mode_linux(devices)].concat()
}

/// QEMU has had a chardev's `reconnect-ms` since 9.2, and `reconnect` until then, with which the vhost-user-scsi of 7.2 does not start;
/// a client of vfio-user since 10.1.
fn qemu(devices: &[Attachment<'_>]) -> String {
    let any =
        |wanted: fn(DeviceKind) -> bool| devices.iter().any(|attachment| wanted(attachment.device.kind));
    let label = if any(DeviceKind::is_pci) {
        "QEMU 10.1 or later (before it, there is no vfio-user):"
    } else if any(DeviceKind::has_units) {
        "QEMU 9.2 or later (9.1 and before: without ,reconnect-ms=1000):"
    } else {
        "QEMU 9.2 or later (9.1 and before: reconnect=1 in place of reconnect-ms=1000):"
    };
    let mut words = vec![
        "qemu-system-x86_64 -machine q35,memory-backend=mem -m 1G".to_owned(),
        "-object memory-backend-memfd,id=mem,size=1G,share=on".to_owned(),
    ];
    for Attachment { name, device, path } in devices {
        let (driver, queues) = match device.kind {
            DeviceKind::VirtioBlk => ("vhost-user-blk-pci", "num-queues"),
            DeviceKind::VirtioScsi => ("vhost-user-scsi-pci", "num_queues"),
            _ => {
                // The option is JSON: text in quotes, backslashes and quotes escaped.
                let socket = serde_json::Value::from(path.as_str());
                let option = format!(
                    "{{\"driver\":\"vfio-user-pci\",\"socket\":{{\"type\":\"unix\",\"path\":{socket}}}}}"
                );
                words.push(format!("-device {}", quoted(&option)));
                continue;
            }
        };
        let path = path.replace(',', ",,");
        let socket = format!("socket,id={name},path={path},reconnect-ms=1000");
        words.push(format!("-chardev {}", quoted(&socket)));
        words.push(format!(
            "-device {}",
            quoted(&format!("{driver},chardev={name},{queues}={}", device.queues))
        ));
    }
    format!("{label}\n  {} ...\n", words.join(" \\\n    "))
}

fn cloud_hypervisor(devices: &[Attachment<'_>]) -> String {
    let (mut disks, mut pci) = (String::new(), String::new());
    for Attachment { device, path, .. } in devices {
        let (queues, size) = (device.queues, device.queue_size);
        match device.kind {
            DeviceKind::VirtioBlk => {
                let disk = format!("vhost_user=true,socket={path},num_queues={queues},queue_size={size}");
                disks += &format!(" {}", quoted(&disk));
            }
            DeviceKind::VirtioScsi => {
                return "cloud-hypervisor: has no virtio-scsi; serve virtio-blk\n".into();
            }
            _ => pci += &format!(" {}", quoted(&format!("socket={path}"))),
        }
    }
    let option =
        |name: &str, values: String| if values.is_empty() { values } else { format!(" {name}{values}") };
    let (disks, pci) = (option("--disk", disks), option("--user-device", pci));
    format!("cloud-hypervisor:\n  cloud-hypervisor --memory size=1G,shared=on{disks}{pci} ...\n")
}

fn user_mode_linux(devices: &[Attachment<'_>]) -> String {
    let mut words = String::new();
    for Attachment { device, path, .. } in devices {
        // The numbers of virtio's device types.
        let number = match device.kind {
            DeviceKind::VirtioBlk => 2,
            DeviceKind::VirtioScsi => 8,
            // It has no PCI devices of other programs.
            _ => return String::new(),
        };
        if path.contains([':', ' ']) {
            return "User-Mode Linux: takes no path with a colon or a space\n".into();
        }
        words += &format!(" virtio_uml.device={}:{number}", quoted(path));
    }
    format!("User-Mode Linux:\n  linux.uml mem=256M{words} ...\n")
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

    fn of_one(name: &str, device: &DeviceConfig, path: &str) -> String {
        lines(&[Attachment::new(name, device, Path::new(path))])
    }

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
        let text = of_one("disk0", &device(DeviceKind::VirtioBlk), "/run/s.sock");
        assert!(text.contains("share=on") && text.contains("shared=on"), "{text}");
        assert!(text.contains("-chardev socket,id=disk0,path=/run/s.sock,reconnect-ms=1000"), "{text}");
        assert!(text.contains("vhost-user-blk-pci,chardev=disk0,num-queues=4"), "{text}");
        assert!(text.contains("virtio_uml.device=/run/s.sock:2"), "{text}");
    }

    #[test]
    fn scsi_is_offered_where_it_is_known() {
        let text = of_one("host", &device(DeviceKind::VirtioScsi), "/run/s.sock");
        assert!(text.contains("vhost-user-scsi-pci,chardev=host,num_queues=4"), "{text}");
        assert!(text.contains("9.1 and before: without ,reconnect-ms=1000"), "{text}");
        assert!(text.contains("has no virtio-scsi") && text.contains("/run/s.sock:8"), "{text}");
    }

    #[test]
    fn pci_devices_are_attached_over_vfio_user() {
        let text = of_one("disk0", &device(DeviceKind::Ahci), "/run/a \"b\".sock");
        let option = r#"'{"driver":"vfio-user-pci","socket":{"type":"unix","path":"/run/a \"b\".sock"}}'"#;
        assert!(text.contains(option) && text.contains("share=on"), "{text}");
        assert!(text.contains("--user-device") && !text.contains("vhost"), "{text}");
    }

    #[test]
    fn several_devices_are_on_one_line_and_versions_are_named() {
        let (blk, ahci) = (device(DeviceKind::VirtioBlk), device(DeviceKind::Ahci));
        let at = |name, device, path| Attachment::new(name, device, Path::new(path));
        let text = lines(&[at("a", &blk, "/run/a"), at("b", &blk, "/run/b")]);
        assert_eq!(text.matches("qemu-system").count(), 1, "{text}");
        assert!(text.starts_with("QEMU 9.2 or later (9.1 and before: reconnect=1 "), "{text}");
        assert!(text.contains("chardev=a,") && text.contains("chardev=b,num-queues=4 ...\n"), "{text}");
        assert!(text.contains("virtio_uml.device=/run/a:2 virtio_uml.device=/run/b:2 ..."), "{text}");
        assert_eq!(text.matches("--disk vhost_user=true,socket=/run/a,").count(), 1, "{text}");
        let text = lines(&[at("a", &blk, "/run/a"), at("b", &ahci, "/run/b")]);
        assert!(text.starts_with("QEMU 10.1 or later") && text.contains("vfio-user-pci"), "{text}");
        assert!(
            text.contains("reconnect-ms=1000") && text.contains("--user-device socket=/run/b ..."),
            "{text}"
        );
        assert_eq!(lines(&[]), "");
    }

    #[test]
    fn odd_paths_are_quoted_for_the_shell_and_for_qemu() {
        let text = of_one("disk0", &device(DeviceKind::VirtioBlk), "/run/my disk,1.sock");
        assert!(text.contains("'socket,id=disk0,path=/run/my disk,,1.sock,reconnect-ms=1000'"), "{text}");
        assert!(text.contains("takes no path"), "{text}");
    }
}
