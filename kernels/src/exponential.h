// The exponential of what is not above zero.
#pragma once

namespace {

// e^x for x <= 0, relative error under 2e-7: x = n ln 2 + r, |r| <= ln 2 / 2, and a polynomial
// of degree 5 in r. Below -87 the result stays at e^-87 (1.6e-38, the smallest normal numbers).
inline Vec exp_negative(Vec x) {
  x = max(Vec::all(-87.0f), x);
  const Vec n = nearest(x * Vec::all(1.44269504f));
  Vec r = fma(n, Vec::all(-0.693359375f), x);  // ln 2 in two parts, the first exact in 10 bits
  r = fma(n, Vec::all(2.12194440e-4f), r);
  Vec p = Vec::all(0.008312477730214596f);
  p = fma(p, r, Vec::all(0.041890550404787064f));
  p = fma(p, r, Vec::all(0.16667115688323975f));
  p = fma(p, r, Vec::all(0.4999922811985016f));
  p = fma(p * r, r, r);
  return scale_by_power(p + Vec::all(1.0f), n);
}

}  // namespace
