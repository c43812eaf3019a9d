//! CIE Lab of eight bits as Pillow converts it, by LittleCMS: to sRGB at the nodes of a 33 x 33 x 33 grid, and between
//! these along the edges of tetrahedra, in 16-bit arithmetic. Between nodes that is up to 14 levels away from the
//! formula in the darkest colours, so the grid is part of the result. The rest agrees within one level.

use std::sync::LazyLock;

const NODES: usize = 33;

/// Red, green and blue of each node, of 16 bits; the last index runs fastest.
static GRID: LazyLock<Vec<[i64; 3]>> = LazyLock::new(|| {
    let at = |index: usize| (index as f64 * 65_535.0 / (NODES - 1) as f64).round();
    let indices = (0..NODES).flat_map(|l| (0..NODES).flat_map(move |a| (0..NODES).map(move |b| [l, a, b])));
    indices.map(|[l, a, b]| node(at(l) / 655.35, at(a) / 257.0 - 128.0, at(b) / 257.0 - 128.0)).collect()
});

/// sRGB by the formula, from Lab with the white of D50.
fn node(l: f64, a: f64, b: f64) -> [i64; 3] {
    let cube = |t: f64| if t > 24.0 / 116.0 { t * t * t } else { 108.0 / 841.0 * (t - 16.0 / 116.0) };
    let y = (l + 16.0) / 116.0;
    let [x, y, z] = [0.9642 * cube(y + a / 500.0), cube(y), 0.8249 * cube(y - b / 200.0)];
    let linear = [
        3.133_856_1 * x - 1.616_866_7 * y - 0.490_614_6 * z,
        -0.978_768_4 * x + 1.916_141_5 * y + 0.033_454 * z,
        0.071_945_3 * x - 0.228_991_4 * y + 1.405_242_7 * z,
    ];
    linear.map(|value| {
        let value = value.clamp(0.0, 1.0);
        let curved = if value <= 0.003_130_8 { 12.92 * value } else { 1.055 * value.powf(1.0 / 2.4) - 0.055 };
        (curved * 65_535.0).round() as i64
    })
}

/// As TIFF stores it: lightness, then a and b as signed numbers.
pub(super) fn to_rgb(&[l, a, b]: &[u8; 3]) -> [u8; 3] {
    let mut index = [0; 3];
    let mut rest = [0; 3];
    for (axis, value) in [l, a ^ 0x80, b ^ 0x80].into_iter().enumerate() {
        let fixed = i64::from(value) * 257 * (NODES as i64 - 1);
        let fixed = fixed + (fixed + 0x7FFF) / 0xFFFF;
        (index[axis], rest[axis]) = ((fixed >> 16) as usize, fixed & 0xFFFF);
    }
    let color = |index: [usize; 3]| GRID[(index[0] * NODES + index[1]) * NODES + index[2]];
    // From the lower node to the upper one, along the axis with the largest rest first.
    let mut axes = [0, 1, 2];
    axes.sort_by_key(|axis| -rest[*axis]);
    let first = color(index);
    let mut last = first;
    let mut sums = [0x8001; 3];
    for axis in axes {
        index[axis] = (index[axis] + 1).min(NODES - 1);
        let next = color(index);
        for channel in 0..3 {
            sums[channel] += (next[channel] - last[channel]) * rest[axis];
        }
        last = next;
    }
    std::array::from_fn(|channel| {
        let sum = sums[channel];
        let wide = first[channel] + ((sum + (sum >> 16)) >> 16);
        ((wide * 65_281 + 8_388_608) >> 24) as u8
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grays_and_the_corners_of_the_cube_are_what_they_should_be() {
        // Lightness of a gray, by CIE's formula.
        for (gray, lightness) in [(0u8, 0u8), (119, 127), (255, 255)] {
            for channel in to_rgb(&[lightness, 0, 0]) {
                assert!(channel.abs_diff(gray) <= 1, "{gray}: {channel}");
            }
        }
        // sRGB's red is (54.29, 80.81, 69.89) in Lab of D50.
        let red = to_rgb(&[138, 81, 70]);
        assert!(red[0] >= 250 && red[1] <= 12 && red[2] <= 12, "{red:?}");
    }
}
