#!/bin/sh
# What cargo runs as RUSTC_WRAPPER: the fuzzer is told of every branch and comparison in the engines, and only there, so
# that the libraries beneath need no builds of their own.
case " $* " in
*" --crate-name nkd_server "*)
  exec "$@" --cfg fuzzing -C codegen-units=16 -C passes=sancov-module \
    -C llvm-args=-sanitizer-coverage-level=4 \
    -C llvm-args=-sanitizer-coverage-inline-8bit-counters \
    -C llvm-args=-sanitizer-coverage-pc-table \
    -C llvm-args=-sanitizer-coverage-trace-compares
  ;;
esac
exec "$@"
