//! What is free where the system is kept.

use nkd_api::facts::Room;

use super::Root;

/// Below so many bytes it is told in steps of [`FINE`], above in steps of [`COARSE`]: logs alone are no news.
const LITTLE: u64 = 4 << 30;
const FINE: u64 = 64 << 20;
const COARSE: u64 = 1 << 30;

/// The file systems that a second system, and the images of Kubernetes, need room in. One that is part of another one is
/// left out.
pub(super) fn room(root: &Root) -> Vec<Room> {
    let system = if root.exists("/sysroot/ostree") { "/sysroot" } else { "/" };
    let of = |path: &str| root.identity(path).map(|(device, _)| device);
    let own = |path: &str| of(path).is_some() && of(path) != of(system) && of(path) != of("/");
    let paths = [system].into_iter().chain(["/boot", "/var"].into_iter().filter(|path| own(path)));
    paths.filter_map(|path| Some(Room { path: path.to_owned(), free_bytes: steps(free(root, path)?) })).collect()
}

fn free(root: &Root, path: &str) -> Option<u64> {
    let stat = nix::sys::statvfs::statvfs(&root.path(path)).ok()?;
    Some(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

fn steps(bytes: u64) -> u64 {
    let step = if bytes < LITTLE { FINE } else { COARSE };
    bytes / step * step
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_is_told_once_and_not_at_every_log_line() {
        let tree = tempfile::tempdir().unwrap();
        for path in ["boot", "var", "sysroot/ostree"] {
            std::fs::create_dir_all(tree.path().join(path)).unwrap();
        }
        let told = room(&Root::new(tree.path()));
        assert_eq!(told.iter().map(|room| room.path.as_str()).collect::<Vec<_>>(), ["/sysroot"], "it is one");
        std::fs::remove_dir_all(tree.path().join("sysroot")).unwrap();
        assert_eq!(room(&Root::new(tree.path()))[0].path, "/");
        let mebibytes = |n: u64| n << 20;
        assert_eq!(steps(mebibytes(100)), mebibytes(64));
        assert_eq!(steps(mebibytes(63)), 0);
        assert_eq!((steps(mebibytes(5000)), steps(mebibytes(4097))), (mebibytes(4096), mebibytes(4096)));
    }
}
