//! What a file is that is not what its name says: the page of an error that was saved instead of the data, above all.

/// What begins like this, as the end of "it is …".
pub(crate) fn what(beginning: &[u8]) -> Option<&'static str> {
    const MAGICS: [(&[u8], &str); 14] = [
        (b"version https://git-lfs", "a Git LFS pointer, not the data: fetch the data (git lfs pull)"),
        (b"\x1f\x8b", "compressed with gzip: unpack it"),
        (b"\x28\xb5\x2f\xfd", "compressed with Zstandard: unpack it"),
        (b"BZh", "compressed with bzip2: unpack it"),
        (b"\xfd7zXZ\0", "compressed with xz: unpack it"),
        (b"PK\x03\x04", "a zip file (so are npz files and Excel's workbooks)"),
        (b"PAR1", "a Parquet file; let its name end in .parquet"),
        (b"ARROW1", "an Arrow file; let its name end in .arrow"),
        (b"\x93NUMPY", "an npy file; let its name end in .npy"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file; let its name end in .h5"),
        (b"\xff\xd8\xff", "a JPEG image"),
        (b"\x89PNG\r\n\x1a\n", "a PNG image"),
        (b"\x80\x04\x95", "a pickle, which is never loaded because it can run any code"),
        (b"SQLite format 3\0", "an SQLite database"),
    ];
    if let Some((_, what)) = MAGICS.iter().find(|(magic, _)| beginning.starts_with(magic)) {
        return Some(what);
    }
    if beginning.get(257..262) == Some(b"ustar") {
        return Some("a tar file; let its name end in .tar");
    }
    let text: Vec<u8> = beginning.trim_ascii_start().iter().take(16).map(u8::to_ascii_lowercase).collect();
    let is_page = [&b"<!doctype html"[..], b"<html", b"<?xml", b"<head", b"<error"];
    is_page
        .iter()
        .any(|start| text.starts_with(start))
        .then_some("a web page, not the data, perhaps from a failed download: fetch it again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_known_by_how_they_begin() {
        for (beginning, expected) in [
            (&b"<!DOCTYPE html>\n<html>"[..], "web page"),
            (b"\n  <html lang=en>", "web page"),
            (b"<?xml version=\"1.0\"?><Error><Code>AccessDenied", "web page"),
            (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
            (b"PK\x03\x04....", "zip"),
            (b"BZh9", "bzip2"),
        ] {
            assert!(what(beginning).unwrap().contains(expected));
        }
        for beginning in [&b""[..], b"path,label\n", b"{\"a\": 1}", b"<x>", b"P"] {
            assert_eq!(what(beginning), None);
        }
        let mut tar = [0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        assert!(what(&tar).unwrap().contains("tar"));
    }
}
