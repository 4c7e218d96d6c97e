//! iPXE scripts (pure). Every script ends in a retry, never in a dead end; the reason stands on the console.

use nkd_api::facts::Firmware;
use nkd_api::machine::LocalBoot;

/// Seconds between two requests of a machine that waits.
const RETRY_SECONDS: u32 = 10;

/// The first script: it knows nothing of the machine and asks for the second with what iPXE knows.
///
/// Served at `/boot.ipxe` without a query, and as `autoexec.ipxe`. Relative addresses are not used: over TFTP there
/// is nothing that they could be relative to.
#[must_use]
pub fn entry(base_url: &str) -> String {
    format!(
        "#!ipxe\n\
         # nkd: tell the service which machine this is. netX is the interface that this script came through.\n\
         isset ${{netX/mac}} || set netX/mac ${{net0/mac}} ||\n\
         set tries:int32 0\n\
         :ask\n\
         chain --autofree {base_url}/boot.ipxe?mac=${{netX/mac}}&uuid=${{uuid}}&serial=${{serial:uristring}}&vendor=${{manufacturer:uristring}}&product=${{product:uristring}}&arch=${{buildarch}}&platform=${{platform}}&entry=1 && exit ||\n\
         inc tries\n\
         echo nkd: no answer from {base_url} (try ${{tries}}), again in {RETRY_SECONDS} s\n\
         sleep {RETRY_SECONDS}\n\
         goto ask\n"
    )
}

/// A live boot: discovery or install.
#[derive(Debug, Clone)]
pub struct LiveBoot<'a> {
    /// One line for the console.
    pub title: &'a str,
    /// Address of the kernel.
    pub kernel_url: &'a str,
    /// Address of the initramfs with the overlay appended.
    pub initrd_url: &'a str,
    /// Kernel arguments, without `initrd=`.
    pub args: &'a [String],
}

/// Boots a live system. `initrd=` is needed by UEFI kernels.
#[must_use]
pub fn live(boot: &LiveBoot<'_>) -> String {
    format!(
        "#!ipxe\n\
         echo nkd: {title}\n\
         imgfree\n\
         kernel {kernel} initrd=initrd {args} || goto failed\n\
         initrd --name initrd {initrd} || goto failed\n\
         boot || goto failed\n\
         :failed\n\
         imgfree\n\
         echo nkd: the boot files could not be fetched; asking again in {RETRY_SECONDS} s\n\
         sleep {RETRY_SECONDS}\n\
         exit 1\n",
        title = printable(boot.title),
        kernel = boot.kernel_url,
        args = boot.args.join(" "),
        initrd = boot.initrd_url,
    )
}

/// Sends a machine on to its disk; none when this machine is to get 404.
#[must_use]
pub fn local_disk(how: LocalBoot, firmware: Firmware, title: &str) -> Option<String> {
    let title = printable(title);
    match how {
        LocalBoot::Exit => Some(format!("#!ipxe\necho nkd: {title}: booting the local disk\nexit 0\n")),
        LocalBoot::Sanboot => {
            let command = match firmware {
                Firmware::Uefi => "sanboot --no-describe --drive 0 --filename \\EFI\\BOOT\\BOOTX64.EFI",
                Firmware::Bios | Firmware::Unknown => "sanboot --no-describe --drive 0x80",
            };
            Some(format!("#!ipxe\necho nkd: {title}: booting the local disk\n{command} || exit 0\n"))
        }
        LocalBoot::NotFound => None,
    }
}

/// Makes a machine wait; the caller asks again.
#[must_use]
pub fn not_now(reason: &str) -> String {
    format!(
        "#!ipxe\necho nkd: {}\necho nkd: asking again in {RETRY_SECONDS} s\nsleep {RETRY_SECONDS}\nexit 1\n",
        printable(reason)
    )
}

/// Text that cannot be taken for a command or a variable, in a line that a console shows.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' })
        .map(|c| if matches!(c, '$' | '|' | '&' | '#' | '\\' | '"' | '\'') { '.' } else { c })
        .take(240)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Names and reasons come from machines and people: they must not become commands.
        #[test]
        fn text_never_becomes_a_command(reason in ".*") {
            let script = not_now(&reason);
            prop_assert_eq!(script.lines().count(), 5);
            let variable = script.contains("${");
            prop_assert!(!variable);
            prop_assert!(script.lines().nth(1).unwrap().starts_with("echo nkd: "));
            prop_assert!(!script.contains("||") && !script.contains("&&"));
        }
    }

    #[test]
    fn every_script_but_local_disk_ends_by_asking_again() {
        let live =
            live(&LiveBoot { title: "x", kernel_url: "http://h/k", initrd_url: "http://h/i", args: &["a=b".into()] });
        for script in [live, not_now("r")] {
            // The entry script takes a failing chained script as a reason to ask again.
            assert!(script.ends_with("exit 1\n"), "{script}");
        }
        assert!(entry("http://h:8080").ends_with("goto ask\n"));
    }
}
