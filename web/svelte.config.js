/** @type {import("svelte/compiler").CompileOptions} */
export default { compilerOptions: { runes: true } };
