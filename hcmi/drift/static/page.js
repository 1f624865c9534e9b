async function unpack(id){
  const bytes=Uint8Array.from(atob(document.getElementById(id).textContent),c=>c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}
document.querySelectorAll("details.evidently").forEach(box=>box.addEventListener("toggle",async()=>{
  const frame=box.querySelector("iframe");
  if(!box.open||frame.srcdoc)return;
  const [page,library]=await Promise.all([unpack(box.dataset.page),unpack("evidently-library")]);
  frame.srcdoc=page.replace("/*evidently-library*/",()=>library);
}));
